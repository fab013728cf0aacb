"""A selection of a cache as a PyTorch data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from pipeline.core.spec import PENULTIMATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.cache import Cache


class EmbeddingDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A PyTorch map-style data set over a selection: embedding (D,) float32, label int64 (-1 for none).

    It serves any ``torch.utils.data.DataLoader``. A batch is gathered from the map at once, so shuffled batches cost a
    copy of their rows and no more. `loader` also avoids the loader's stacking of rows, which costs more than reading
    them. Workers receive only the path and map the file themselves.

    Parameters
    ----------
    cache : Cache
    rows : (n,) int64
        Which rows of the cache, in this order.
    labels : (n,) int
        Their labels.
    layer : str
        Whose embeddings; the cache has it.

    Attributes
    ----------
    labels : (n,) int64
    label_names : tuple of str
    """

    def __init__(
        self, cache: Cache, rows: NDArray[np.int64], labels: NDArray[np.integer[Any]], layer: str = PENULTIMATE
    ) -> None:
        self.width = int(cache.layers[layer].shape[1])
        self.labels = labels.astype(np.int64)
        self.label_names = cache.label_names
        self._cache, self._layer, self._rows = cache, layer, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | list[int] | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one row, or with several positions a batch: (B, D) float32 and (B,) int64."""
        rows = self._cache.layers[self._layer][self._rows[index]]
        return torch.from_numpy(np.array(rows, dtype=np.float32)), torch.as_tensor(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return several rows for a loader that stacks them, gathered at once."""
        return list(zip(*self[indices], strict=True))

    def loader(
        self,
        batch_size: int = 256,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        """Return a DataLoader of whole batches: (B, D) float32 and (B,) int64.

        Parameters
        ----------
        batch_size, shuffle, drop_last, generator
            As in DataLoader.
        **options
            Further arguments of DataLoader, such as ``num_workers`` or ``pin_memory``.
        """
        order: Any = RandomSampler(self, generator=generator) if shuffle else SequentialSampler(self)
        batches: Any = BatchSampler(order, batch_size, drop_last)
        # No automatic batching: the sampler gives lists of positions, and each is one gather.
        return DataLoader(self, batch_size=None, sampler=batches, **options)
