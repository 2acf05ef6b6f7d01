"""Keys and values of the tokens read so far, so that the next ones need not read them again."""

import torch
from torch import Tensor

from ahkio.model.shape import LlamaConfig


class Cache:
    """Room for `capacity` tokens in each of `batch` rows, all rows the same number of tokens long.

    Shorter rows are padded; `admit` is told where, and nothing sees the padding.
    """

    def __init__(self, c: LlamaConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (c.layers, 2, batch, capacity, c.kv_heads, c.head_width)
        self.kept = torch.empty(shape, dtype=dtype, device=device)
        self.valid_BS = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self.length = 0  # tokens whose keys every layer holds
        self.ahead = 0  # of those, the ones that the running forward pass brings

    def admit(self, valid_BT: Tensor) -> Tensor:
        """Make room for T tokens a row; return which of the S then cached each of them may see, (B, T, S) bool."""
        self.length += self.ahead
        self.ahead = valid_BT.shape[1]
        end = self.length + self.ahead
        self.valid_BS[:, self.length : end] = valid_BT
        causal_TS = torch.ones(self.ahead, end, dtype=torch.bool, device=valid_BT.device).tril(self.length)
        itself_TS = torch.zeros_like(causal_TS).diagonal_scatter(
            torch.ones(self.ahead, dtype=torch.bool, device=valid_BT.device), self.length
        )
        # Padding sees itself, so that no row of the softmax is empty.
        return (self.valid_BS[:, None, :end] & causal_TS) | itself_TS

    def extend(self, layer: int, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values; return all of that layer's, (B, S, K, E) each."""
        end = self.length + self.ahead
        self.kept[layer, 0, :, self.length : end] = k_BTKE
        self.kept[layer, 1, :, self.length : end] = v_BTKE
        return self.kept[layer, 0, :, :end], self.kept[layer, 1, :, :end]

    def repeated(self, times: int) -> "Cache":
        """A cache of `times` as many rows, each row repeated side by side; the original stays as it is."""
        return self.selected(torch.arange(len(self.valid_BS), device=self.valid_BS.device).repeat_interleave(times))

    def selected(self, rows: Tensor) -> "Cache":
        """A cache of these rows of this one, which stays as it is."""
        copy = object.__new__(Cache)
        copy.kept, copy.valid_BS = self.kept[:, :, rows], self.valid_BS[rows]
        copy.length, copy.ahead = self.length, self.ahead
        return copy
