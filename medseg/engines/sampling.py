"""Many plausible segmentations of one case from a network that draws samples, and what they say together.

With p_k the class probabilities of sample k at a voxel, k = 1..N, and p their mean,

    entropy     - sum over classes of p log2 p                     how uncertain the mean is, in bits
    variance    largest over classes of the variance of p_k        how much the samples disagree

The label of a voxel is the most probable class of the mean. What a window has in common for all samples is computed
once for a group of samples; a group is as large as memory allows, and its size changes nothing but time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from medseg.data import Volume
from medseg.engines.memory_plan import InsufficientMemoryError, MemoryPlan
from medseg.engines.ways_back import Task, Way, finish_labels, gather_slabs, map_back
from medseg.engines.windows import Windows
from medseg.inferers import Backend, Engine, Slab, draw_noise, with_noise

Tell = Callable[[int, int], None] | None


@dataclass
class CaseSamples:
    """What the samples of one case say.

    Attributes:
        masks: label of every voxel in each sample, (N, X, Y, Z), unsigned integers.
        entropy: in bits, (X, Y, Z), float32.
        variance: (X, Y, Z), float32, at most 1/4.
    """

    masks: np.ndarray
    entropy: np.ndarray
    variance: np.ndarray


class Sampler:
    """Draws the samples of a case, with noise that is the same for every window and every case.

    Args:
        network: a network that `medseg.inferers.draw_noise` accepts.
        samples: how many.
        seed: seed of the noise.
        windows: how windows move over a case.

    Raises:
        ValueError: `samples` is below 1, or the network cannot draw samples.
    """

    def __init__(self, network: torch.nn.Module, samples: int, seed: int, windows: Windows) -> None:
        self.network, self.windows = network, windows
        self.noise = draw_noise(network, samples, seed)

    @classmethod
    def build(
        cls, network: torch.nn.Module, samples: int | None, seed: int, engine: Engine, windows: Windows
    ) -> Sampler | None:
        """Make a sampler, or none where no samples are asked for."""
        if samples is None:
            return None
        if engine == "openvino":
            raise ValueError("samples are drawn by PyTorch, but engine is openvino; use engine auto or torch")
        return cls(network, samples, seed, windows)

    @property
    def samples(self) -> int:
        """How many samples of each case."""
        return len(self.noise)

    def fit(self, plan: MemoryPlan, task: Task, first: Volume) -> tuple[int, MemoryPlan]:
        """Largest group of samples that fits beside what one answer takes, and the plan for it.

        Raises:
            InsufficientMemoryError: not even a group of one fits.
        """
        each, least = self._each(task), plan.bytes + self._fixed(task, first)
        group = min((plan.available - least) // each, self.samples)
        if group < 1:
            raise InsufficientMemoryError(
                f"{self.samples} samples need about {(least + each) / 1e9:.2f} GB of memory, "
                f"{max(plan.available, 0) / 1e9:.2f} GB may be used; draw fewer samples, or allow more with "
                "--max-memory where there is more"
            )
        return group, MemoryPlan(plan.way, least + group * each, plan.available)

    def _fixed(self, task: Task, first: Volume) -> int:
        """Bytes of masks, running sums and the probabilities of one sample on the input grid."""
        return first.array.size * (self.samples + 12 * task.num_classes)

    def _each(self, task: Task) -> int:
        """Bytes that a sample of a group adds: its answer on the network's grid and in the windows that run."""
        shape = tuple(task.data["image"].shape[1:])
        window = math.prod(self.windows.shape(shape)) * self.windows.batch_size
        return 4 * task.num_classes * (math.prod(shape) + 2 * window)

    def draw(
        self,
        task: Task,
        way: Way,
        group: int,
        run: Callable[[Tell, Backend], Iterator[Slab]],
        on_windows: Tell,
        backend: Callable[[torch.nn.Module], Backend],
    ) -> tuple[torch.Tensor, torch.Tensor, CaseSamples]:
        """Draw all samples of a case and bring them to the input grid.

        Args:
            task: the case, whose probabilities are kept.
            way: how answers go back.
            group: samples drawn together.
            run: moves windows over the case with a back end.
            on_windows: told how many windows are done and how many there are.
            backend: makes a back end of a network.

        Returns:
            Labels (1, X, Y, Z) and probabilities (C, X, Y, Z) of the mean, and what the samples say.
        """
        moments = _Moments()
        depth = task.data["image"].shape[task.axis + 1]
        groups = self.noise.split(group)
        for index, noise in enumerate(groups):
            if self.windows.streaming:
                self.windows.streaming.sets = len(noise)
            tell = on_windows and _counting(on_windows, index, len(groups))
            slabs = run(tell, backend(_Answering(self.network, noise)))
            for logits in gather_slabs(slabs, task).unflatten(0, (len(noise), -1)):
                labels, probabilities = map_back(way, [Slab(0, depth, logits)], task)
                if probabilities is None:
                    raise ValueError("samples need an Invertd in the postprocessing of the bundle")
                moments.add(labels, probabilities)
        return moments.finish(task)


class _Answering(torch.nn.Module):
    """A network whose forward pass answers with a group of samples side by side."""

    def __init__(self, network: torch.nn.Module, noise: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.answer = with_noise(network, noise)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.answer(windows)


@dataclass
class _Moments:
    """Masks and running sums over samples, on the input grid."""

    masks: list[np.ndarray] = field(default_factory=list)
    total: torch.Tensor | None = None
    squares: torch.Tensor | None = None

    def add(self, labels: torch.Tensor, probabilities: torch.Tensor) -> None:
        self.masks.append(labels[0].cpu().numpy())
        if self.total is None or self.squares is None:
            self.total, self.squares = probabilities.clone(), probabilities.square_()
        else:
            self.total += probabilities
            self.squares += probabilities.square_()

    def finish(self, task: Task) -> tuple[torch.Tensor, torch.Tensor, CaseSamples]:
        assert self.total is not None
        assert self.squares is not None
        count = len(self.masks)
        mean = self.total.div_(count)
        variance = self.squares.div_(count).sub_(mean.square()).clamp_(min=0).amax(dim=0)
        entropy = torch.special.entr(mean).sum(dim=0).div_(math.log(2))
        best, labels = mean.max(dim=0, keepdim=True)
        if task.threshold is not None:
            labels = labels.masked_fill(best < task.threshold, 0)
        samples = CaseSamples(np.stack(self.masks), entropy.numpy(), variance.numpy())
        return finish_labels(labels.to(torch.int32), task), mean, samples


def empty_samples(count: int, shape: tuple[int, ...]) -> CaseSamples:
    """Samples of a case in which there is nothing to find."""
    nothing = np.zeros(shape, dtype=np.float32)
    return CaseSamples(np.zeros((count, *shape), dtype=np.uint8), nothing, nothing.copy())


def _counting(on_windows: Callable[[int, int], None], index: int, groups: int) -> Callable[[int, int], None]:
    """Count windows of one group of several."""
    return lambda done, total: on_windows(index * total + done, groups * total)
