"""The parts of a decoder layer. A model's traits (`family.py`) say which of them its layers have."""

from dataclasses import dataclass

from icarus_kernels import Columns, LoraRows, add_segmented_lora, paged_attention, store_kv
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from icarus.model.batch import QueryRows, StepBatch
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
    """The base weights of modules that read the same input, read once for all rows, and each adapter's deltas on its
    own rows."""

    layer: int
    columns: tuple[Columns, ...]
    """Where each module's output is."""
    weight: Tensor
    """[out of all modules, in]."""
    bias: Tensor | None = None

    def __call__(self, x: Tensor, adapted: LoraRows | None) -> Tensor:
        """[rows, in] -> [rows, out of all modules]."""
        output = linear(x, self.weight, self.bias)
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
        heads = self.qkv_proj(x, batch.every.adapted).unflatten(-1, (-1, self.head_dim))
        query, keys, values = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        query = self.q_norm(query) if self.q_norm else query
        if batch.num_writes:
            writes = slice(batch.num_writes)
            keys = self.k_norm(keys[writes]) if self.k_norm else keys[writes]
            store_kv(pages, batch.slots, rotation.rows(writes)(keys), values[writes])
        return rotation(query)

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
        gate, up = self.gate_up_proj(x, adapted).chunk(2, dim=-1)
        return self.down_proj(silu(gate).mul_(up), adapted)


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
        query = self.attention.project(self.input_norm(hidden), batch, rotation, pages)
        if queries.index is not None:
            hidden, query = hidden[queries.index], query[queries.index]
        hidden = hidden + self.attention.read(query, queries, pages)
        return hidden + self.mlp(self.mlp_norm(hidden), queries.adapted)
