"""The layers as modules, one file per kind: settings beside the class. Not how they are computed (kernels)."""
