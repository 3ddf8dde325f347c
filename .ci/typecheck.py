"""mypy over every file of the package, in its installed layout; fails where mypy sees fewer files than there are.

In a checkout `scorefield.__path__` leads to the folders beside it, which type checkers do not follow. So the folders are
linked below a folder `scorefield`, as setup.cfg maps them for a wheel.
"""

import configparser
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    folders = {name.split(".")[1] for name in settings["options"]["packages"].split() if "." in name}
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary) / "scorefield"
        package.mkdir()
        for file in (ROOT / "scorefield").iterdir():
            if file.is_file():
                (package / file.name).symlink_to(file)
        for folder in folders:
            (package / folder).symlink_to(ROOT / folder)
        files = sum(1 for place in ("scorefield", *folders) for file in (ROOT / place).rglob("*.py")
                    if "__pycache__" not in file.parts)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "setup.cfg"), "--cache-dir",
                   str(ROOT / ".mypy_cache"), "-p", "scorefield"]
        done = subprocess.run(command, env=os.environ | {"MYPYPATH": temporary}, cwd=temporary, capture_output=True,
                              text=True)
    print(done.stdout.replace(f"{temporary}/scorefield/", "").strip(), done.stderr.strip())
    seen = re.search(r"in (\d+) source files?|checked (\d+) source files?", done.stdout)
    number = int(next(filter(None, seen.groups()))) if seen else 0
    if done.returncode == 0 and number < files:
        print(f"mypy saw {number} of {files} files")
        return 1
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
