"""An optimizer around an optimizer, which schedulers, scalers and checkpoints take for one."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


class OptimizerWrapper(Optimizer):
    """Base: shares the groups and the state of the optimizer inside.

    Args:
        optimizer: any optimizer of torch or of this package.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer inside.

        Args:
            param_group: `params`, and options that differ from the constructor's.
        """
        if not any(param_group is group for group in self.optimizer.param_groups):
            self.optimizer.add_param_group(param_group)
        self._share()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients.

        Args:
            set_to_none: rather than to zeros.
        """
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer inside, under its own keys."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another one stopped.

        Args:
            state_dict: what `state_dict()` gave.
        """
        self.optimizer.load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
