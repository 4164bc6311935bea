"""What command lines are forks of: it has imported what takes long and measured the default's data (`helpers.once`)."""

import torch
import torch.utils.tensorboard

import flowdiff.commands.resume
import flowdiff.commands.samples
import flowdiff.training.run  # noqa: F401
from flowdiff.data.digits import Digits
from flowdiff.denoisers.precondition import Gaussianised
from tests.helpers import once  # noqa: F401

torch.set_num_threads(1)  # a fork of more would wait for threads that it has not
Gaussianised(64, 10).fit(Digits().statistics(10))
