"""What a trained model can do besides drawing samples: each task of conf/task is one class here."""

from flowdiff.tasks.base import Request, Task, TaskResult
from flowdiff.tasks.latent import Interpolate, Traverse
from flowdiff.tasks.restore import Inpaint, SuperResolution

__all__ = ["Inpaint", "Interpolate", "Request", "SuperResolution", "Task", "TaskResult", "Traverse"]
