"""The parts of a decoder layer. A model's traits (`family.py`) say which of them its layers have."""

from collections.abc import Callable
from dataclasses import dataclass

from icarus_kernels import (
    Columns,
    LoraRows,
    add_rms_norm,
    add_segmented_lora,
    paged_attention,
    rms_norm,
    silu_mul,
    store_kv,
)
from torch import Tensor

from icarus.model.batch import QueryRows, StepBatch
from icarus.model.rotation import Rotation


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm over the last dimension, computed in float32."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def of_sum(self, residual: Tensor, x: Tensor) -> Tensor:
        """Adds `x` to the residual in place, and norms that."""
        return add_rms_norm(residual, x, self.weight, self.eps)


@dataclass(frozen=True, eq=False)
class Linear:
    """The base weights of modules that read the same input, read once for all rows, and each adapter's deltas on its
    own rows."""

    layer: int
    columns: tuple[Columns, ...]
    """Where each module's output is."""
    base: Callable[[Tensor], Tensor]
    """[rows, in] -> [rows, out of all modules]."""

    def __call__(self, x: Tensor, adapted: LoraRows | None) -> Tensor:
        """[rows, in] -> [rows, out of all modules]."""
        output = self.base(x)
        if adapted is not None:
            add_segmented_lora(output, x, adapted, self.layer, self.columns)
        return output


@dataclass(frozen=True, eq=False)
class Attention:
    """Grouped-query attention: K and V from the write rows, queries from every row."""

    qkv_proj: Linear
    """Rows that write nothing have K and V too, which nobody reads: that is cheaper than to read weights twice."""
    o_proj: Linear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    q_norm: Norm | None = None
    """Over each head, before RoPE."""
    k_norm: Norm | None = None
    window: int | None = None
    """How many tokens a row sees, its own included; None: all."""

    def project(self, x: Tensor, batch: StepBatch, rotation: Rotation, pages: Tensor) -> Tensor:
        """x [rows of the batch, hidden] -> queries [rows, heads, head_dim]. Stores K and V of the write rows: the only
        writer of the cache."""
        heads = self.qkv_proj(x, batch.every.adapted).view(len(x), -1, self.head_dim)
        turned = self.num_heads + self.num_kv_heads
        query, keys, values = heads[:, : self.num_heads], heads[:, self.num_heads : turned], heads[:, turned:]
        if self.q_norm and self.k_norm:
            query, keys = self.q_norm(query), self.k_norm(keys)
            rotation(query)
            rotation(keys)
        else:
            rotation(heads[:, :turned])
        if batch.num_writes:
            store_kv(pages, batch.slots, keys[: batch.num_writes], values[: batch.num_writes])
        return query

    def read(self, query: Tensor, queries: QueryRows, pages: Tensor) -> Tensor:
        """query [rows of queries, heads, head_dim] -> [rows, hidden]."""
        attended = paged_attention(query, pages, queries.attention, self.window)
        return self.o_proj(attended.flatten(1), queries.adapted)


@dataclass(frozen=True, eq=False)
class GatedMLP:
    """down(silu(gate(x)) * up(x))."""

    gate_up_proj: Linear
    down_proj: Linear

    def __call__(self, x: Tensor, adapted: LoraRows | None) -> Tensor:
        return self.down_proj(silu_mul(self.gate_up_proj(x, adapted)), adapted)


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """Pre-norm attention and MLP. What each gives is added to the residual stream by the norm that comes next: one
    launch for both."""

    input_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: GatedMLP

    def __call__(
        self, hidden: Tensor, added: Tensor, batch: StepBatch, queries: QueryRows, rotation: Rotation, pages: Tensor
    ) -> tuple[Tensor, Tensor]:
        """hidden, which it may change, and what is yet to be added to it, both [rows of the batch, hidden size] -> the
        same for the rows of `queries`; writes K and V on the way."""
        query = self.attention.project(self.input_norm.of_sum(hidden, added), batch, rotation, pages)
        if queries.index is not None:
            hidden, query = hidden[queries.index], query[queries.index]
        x = self.mlp_norm.of_sum(hidden, self.attention.read(query, queries, pages))
        return hidden, self.mlp(x, queries.adapted)
