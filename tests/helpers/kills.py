"""Training that is cut off."""

from contextlib import contextmanager

import pytest

from retriever.module import RetrieverModule


@contextmanager
def killed_at(global_step, module_class=RetrieverModule):
    """The training in the block raises in place of its step behind ``global_step`` steps, and must get so far."""
    step = module_class.training_step

    def killed(self, batch, batch_idx):
        if self.global_step == global_step:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(module_class, "training_step", killed)
        yield
