"""Samplers side by side: budgets of evaluations, tight solutions of the flow, a recommendation, and files that record it."""
