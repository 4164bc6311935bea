"""What a trained model can do besides drawing samples: each task of conf/task is one class here."""

from flowdiff.tasks.base import Drawn, Request, Task
from flowdiff.tasks.latent import Interpolate, Traverse
from flowdiff.tasks.restore import Inpaint, SuperResolution

__all__ = ["Drawn", "Inpaint", "Interpolate", "Request", "SuperResolution", "Task", "Traverse"]
