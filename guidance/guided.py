"""Every kind of guidance together, in the order in which they fit: label, classifier-free or autoguidance, classifier,
threshold.
"""

from typing import Any

from scorefield.guidance.autoguidance import autoguided
from scorefield.guidance.classifier import classifier_guided
from scorefield.guidance.classifier_free import classifier_free
from scorefield.guidance.threshold import threshold as thresholded
from scorefield.models.conditions import GUIDANCE, LABEL
from scorefield.models.score_model import ScoreModel
from scorefield.numerics.errors import ArgumentError, renamed


def guided(model: ScoreModel, label: Any = None, scale: float | None = None, interval: tuple[float, float] | None = None,
           classifier: Any = None, classifier_scale: float | None = None, threshold: str | None = None,
           quantile: float | None = None, low: float = -1.0, high: float = 1.0, autoguidance: ScoreModel | None = None
           ) -> ScoreModel:
    """`model` with everything that is asked for; with nothing, `model` itself.

    label             classes, a scalar or (batch,); None: no label
    scale, interval   of classifier-free guidance (`classifier_free`); None: scale 1, at all times. A model that was
                      distilled from a guided one takes the scale as a condition, and has no interval
    classifier        of noisy examples, and its scale (`classifier_guided`); None: none, and scale 1
    autoguidance      a worse model, from which scale and interval lead away (`autoguided`), in place of classifier-free
                      guidance; None: none
    threshold         "static" or "dynamic", with its quantile (`threshold`), for data in [low, high]; None: none

    With a classifier, a model that takes no label may be given one, which then only the classifier sees. Raises
    ArgumentError for what cannot be combined: a scale, an interval or a classifier without a label; a setting of what is
    not used; a label for a model that takes none; no label for a model that needs one. One use:

    >>> from scorefield.guidance import guided
    >>> from scorefield.models import GaussianMixture
    >>> from scorefield.sde_lib import VPSDE
    >>> mixture = GaussianMixture(VPSDE(), torch.eye(2), torch.full((2,), 0.1), labels=[0, 1])
    >>> guided(mixture, label=1, scale=2.0, threshold="static").x0(torch.zeros(4, 2), 0.5).shape
    torch.Size([4, 2])
    """
    _check(model, label, scale, interval, classifier, classifier_scale, threshold, quantile, autoguidance)
    result = model
    if label is None and model.takes.guidance is not None:      # without a label, every scale is the same
        result = model.given(label=None, guidance=model.takes.guidance[0])
    if autoguidance is not None:
        told = {} if label is None or LABEL not in model.takes.names else {LABEL: label}
        result = autoguided(model, autoguidance, 1.0 if scale is None else scale, interval, **told)
    elif label is not None and LABEL in model.takes.names:
        told = {GUIDANCE: 1.0 if scale is None else scale} if GUIDANCE in model.takes.names else {}
        with renamed(names={GUIDANCE: "scale"}):
            result = model.given(label=label, **told)
        if scale is not None and scale != 1 and not told:
            result = classifier_free(model, scale, interval, label=label)
    if classifier is not None:
        result = classifier_guided(result, classifier, 1.0 if classifier_scale is None else classifier_scale, label=label)
    if threshold is not None:
        chosen = {} if quantile is None else {"quantile": quantile}
        result = thresholded(result, threshold, **chosen, low=low, high=high)
    return result


def _check(model: ScoreModel, label: Any, scale: float | None, interval: Any, classifier: Any,
           classifier_scale: float | None, threshold: str | None, quantile: float | None, autoguidance: Any) -> None:
    takes = model.takes
    if autoguidance is not None and scale is None:
        raise ArgumentError("autoguidance needs a scale, such as 2; give guidance", "autoguidance", "scale")
    if autoguidance is not None and GUIDANCE in takes.names:
        raise ArgumentError("a model that takes the scale as a condition guides itself; leave out autoguidance",
                            "autoguidance")
    if label is None:
        if (scale is not None and autoguidance is None) or classifier is not None:
            raise ArgumentError("guidance needs a label to guide to, and none is given; give a label", LABEL,
                                "scale" if scale is not None else "classifier")
        if LABEL in takes.names and not takes.label_dropout:
            raise ArgumentError("this model was trained with labels and without label dropout, so it needs a label", LABEL)
    elif LABEL not in takes.names and (classifier is None or (scale is not None and autoguidance is None)):
        raise ArgumentError("the model takes no label: it was trained without classes (model.classes)",
                            LABEL if scale is None else "scale")
    if interval is not None and GUIDANCE in takes.names:
        raise ArgumentError("a model that takes the scale as a condition was distilled for one scale at all times; leave "
                            "out interval", "interval")
    for name, given, needs, there in (("interval", interval, "scale", scale), ("quantile", quantile, "threshold", threshold),
                                      ("classifier_scale", classifier_scale, "classifier", classifier)):
        if given is not None and there is None:
            raise ArgumentError(f"{name} belongs to {needs}, which is not given", name, needs)
    if quantile is not None and threshold != "dynamic":
        raise ArgumentError(f"threshold {threshold!r} has no quantile; it belongs to 'dynamic'", "quantile", "threshold")
    if interval is not None and scale == 1:
        raise ArgumentError("scale 1 is the conditional model at all times; leave out interval, or choose another scale",
                            "interval", "scale")
