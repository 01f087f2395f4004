"""One file per family of attention modules; see `base.py`."""
