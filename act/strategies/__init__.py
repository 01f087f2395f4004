"""One file per strategy; see `base.py`."""
