"""The parts of a decoder layer. A model's traits (`family.py`) say which of them its layers have."""

from collections.abc import Sequence
from dataclasses import dataclass

from icarus_kernels import add_segmented_lora, paged_attention, store_kv
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from icarus.model.batch import AdaptedRows, QueryRows, StepBatch
from icarus.model.rotation import Rotation


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm over the last dimension, computed in float32."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, eq=False)
class Linear:
    """A base weight, read once for all rows, and each adapter's delta on its own rows."""

    layer: int
    module: str
    """PEFT's name: "q_proj"."""
    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor, adapted: Sequence[AdaptedRows]) -> Tensor:
        """[rows, in] -> [rows, out]."""
        output = linear(x, self.weight, self.bias)
        segments = [segment for rows in adapted if (segment := rows.segment(self.layer, self.module))]
        add_segmented_lora(output, x, segments)
        return output


@dataclass(frozen=True, eq=False)
class Attention:
    """Grouped-query attention: K and V from the write rows, queries from every row."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    head_dim: int
    q_norm: Norm | None = None
    """Over each head, before RoPE."""
    k_norm: Norm | None = None
    window: int | None = None
    """How many tokens a row sees, its own included; None: all."""

    def write(self, x: Tensor, batch: StepBatch, rotation: Rotation, pages: Tensor) -> None:
        """Stores K and V of the write rows of `x` [rows, hidden]: the only writer of the cache."""
        if batch.num_writes == 0:
            return
        x = x[: batch.num_writes]
        keys = self._heads(self.k_proj(x, batch.adapted_writes), self.k_norm)
        values = self._heads(self.v_proj(x, batch.adapted_writes))
        store_kv(pages, batch.slots, rotation.rows(slice(batch.num_writes))(keys), values)

    def read(self, x: Tensor, queries: QueryRows, rotation: Rotation, pages: Tensor) -> Tensor:
        """x [rows of queries, hidden] -> the same shape; `rotation` is of these rows."""
        query = rotation(self._heads(self.q_proj(x, queries.adapted), self.q_norm))
        attended = paged_attention(query, pages, queries.sequences[self.window])
        return self.o_proj(attended.flatten(1), queries.adapted)

    def _heads(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        """[rows, heads * head_dim] -> [rows, heads, head_dim]."""
        heads = x.unflatten(-1, (-1, self.head_dim))
        return norm(heads) if norm else heads


@dataclass(frozen=True, eq=False)
class GatedMLP:
    """down(silu(gate(x)) * up(x))."""

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear

    def __call__(self, x: Tensor, adapted: Sequence[AdaptedRows]) -> Tensor:
        gated = silu(self.gate_proj(x, adapted)).mul_(self.up_proj(x, adapted))
        return self.down_proj(gated, adapted)


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """Pre-norm attention and MLP, each added to the residual stream."""

    input_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: GatedMLP

    def __call__(
        self, hidden: Tensor, batch: StepBatch, queries: QueryRows, rotation: Rotation, pages: Tensor
    ) -> Tensor:
        """hidden [rows of the batch, hidden size] -> [rows of `queries`, hidden size]; writes K and V on the way."""
        x = self.input_norm(hidden)
        self.attention.write(x, batch, rotation, pages)
        if queries.index is not None:
            hidden, x = hidden[queries.index], x[queries.index]
        hidden = hidden + self.attention.read(x, queries, rotation.rows(queries.index), pages)
        return hidden + self.mlp(self.mlp_norm(hidden), queries.adapted)
