"""The optimizer of a cell: AdamW (Loshchilov and Hutter 2019), or Muon on the matrices of the blocks and AdamW on the rest.

Muon (Jordan et al. 2024) is `torch.optim.Muon`: Nesterov momentum of 0.95, made nearly orthogonal by five Newton-Schulz
steps in bfloat16. Its update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the size of one of AdamW's: so both
take the same rate and weight decay (arXiv 2502.16982, section 2.2). Query, key and value, which ai2-olmo keeps as one
tensor, are a matrix each here, as are up and gate.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from raysweep.space.cell import Cell

# The matrices that one parameter holds, one below the other.
_MATRICES = {"att_proj": 3, "ff_proj": 2}


class Optimizer:
    """What a cell's settings say, over parameters by OLMo's names."""

    def __init__(self, cell: Cell, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._matrices: dict[str, tuple[torch.Tensor, ...]] = {}
        """By the name of their parameter the matrices of Muon: parts of its memory."""
        if cell.optimizer == "muon":
            for name, parameter in parameters.items():
                if ".blocks." in name and parameter.ndim == 2:
                    self._matrices[name] = parameter.detach().chunk(_MATRICES.get(name.split(".")[-2], 1))
        by_adamw = [parameter for name, parameter in parameters.items() if name not in self._matrices]
        groups: list[dict[str, object]] = [{"params": by_adamw}]
        if cell.weight_decay_on == "matrices":
            groups = [
                {"params": [parameter for parameter in by_adamw if parameter.ndim == 2]},
                {"params": [parameter for parameter in by_adamw if parameter.ndim != 2], "weight_decay": 0.0},
            ]
        self._adamw = torch.optim.AdamW(
            groups,
            lr=cell.peak_learning_rate,
            betas=(cell.beta1, cell.beta2),
            eps=cell.epsilon,
            weight_decay=cell.weight_decay,
            fused=True,
        )
        self._optimizers: list[torch.optim.Optimizer] = [self._adamw]
        if self._matrices:
            self._muon = torch.optim.Muon(
                [matrix for parts in self._matrices.values() for matrix in parts],
                lr=cell.peak_learning_rate,
                weight_decay=cell.weight_decay,
                momentum=0.95,
                nesterov=True,
                ns_coefficients=(3.4445, -4.7750, 2.0315),
                ns_steps=5,
                adjust_lr_fn="match_rms_adamw",
            )
            self._optimizers.append(self._muon)

    def step(self, rate: float) -> None:
        """One step of the parameters, by their gradients."""
        for name, parts in self._matrices.items():
            gradient = self._parameters[name].grad
            assert gradient is not None
            for matrix, part in zip(parts, gradient.chunk(len(parts)), strict=True):
                matrix.grad = part
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def zero_grad(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def moments(self) -> dict[str, torch.Tensor]:
        """What it remembers, for a checkpoint: the optimizer's own tensors."""
        moments = {}
        for name, parameter in self._parameters.items():
            for key, value in self._adamw.state.get(parameter, {}).items():
                moments[f"{name}:{key}"] = value
        for name, parts in self._matrices.items():
            for i, matrix in enumerate(parts):
                for key, value in self._muon.state.get(matrix, {}).items():
                    moments[f"{name}[{i}]:{key}"] = value
        return moments

    def restore(self, moments: Mapping[str, torch.Tensor]) -> None:
        """Go on from the `moments` of a checkpoint."""
        for name, parameter in self._parameters.items():
            for i, matrix in enumerate(self._matrices.get(name, ())):
                if (value := moments.get(f"{name}[{i}]:momentum_buffer")) is not None:
                    self._muon.state[matrix]["momentum_buffer"] = value.to(matrix.device)
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := moments.get(f"{name}:{key}")) is not None:
                    self._adamw.state[parameter][key] = value.to(parameter.device)
