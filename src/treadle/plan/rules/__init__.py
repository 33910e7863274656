"""The verifier's rules, by what they look at. The table that runs them is `plan/verify.py`."""
