"""kernelpool: self-hosted dynamic sessions. A gateway in front of pools of pre-started, isolated Jupyter kernels."""

__version__ = "0.1.0"
