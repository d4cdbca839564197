"""Training: the loop, optimizers, processes and devices, and the files of a run."""

from kiara.training import trainer
from kiara.training.device import give_back_memory
from kiara.training.parallel import joined
from kiara.training.preflight import check_settings
from kiara.training.pretrained import as_continued, with_steps
from kiara.training.run import Run

__all__ = ["Run", "as_continued", "check_settings", "give_back_memory", "joined", "trainer", "with_steps"]
