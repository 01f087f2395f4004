"""vitcompress: one YAML from an unmodified timm vision transformer to a compressed, verified artifact."""

__version__ = "0.1.0"
