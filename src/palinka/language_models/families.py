"""How the supported model families are built: which module is which site."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from palinka.language_models.taps import Part, Tap

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """The module paths of one family; those of a block's parts are relative to the block.

    Attributes:
        blocks: The list of blocks.
        final_norm: The norm after the last block.
        mlp: The whole MLP.
        mlp_first: Its first projection; the gate where the MLP is gated.
        mlp_second: Its second projection.
        attention_out: The attention's output projection.
        query, key, value: Their projections; the same module where they are fused.
        fused: How a fused projection orders its output: query, key and value one after the
            other (`"thirds"`), or so for each head (`"heads"`).
    """

    blocks: str
    final_norm: str
    mlp: str
    mlp_first: str
    mlp_second: str
    attention_out: str
    query: str
    key: str
    value: str
    fused: str | None = None

    def block_taps(self, block: int, heads: int) -> dict[str, Tap]:
        """The taps within one block, by the last part of the site's name."""
        prefix = f"{self.blocks}.{block}"
        groups = {"thirds": 1, "heads": heads}
        taps = {}
        projections = {"q": self.query, "k": self.key, "v": self.value}
        for index, (name, module) in enumerate(projections.items()):
            part = Part(index, groups[self.fused]) if self.fused else None
            taps[f"attn.{name}"] = Tap(f"{prefix}.{module}", part=part)
        return taps | {
            "attn.out": Tap(f"{prefix}.{self.attention_out}"),
            "mlp.pre": Tap(f"{prefix}.{self.mlp_first}"),
            "mlp.post": Tap(f"{prefix}.{self.mlp_second}", side="input"),
            "mlp.out": Tap(f"{prefix}.{self.mlp}"),
            "resid": Tap(prefix),
        }


_GPT2 = Family(
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    mlp="mlp",
    mlp_first="mlp.c_fc",
    mlp_second="mlp.c_proj",
    attention_out="attn.c_proj",
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    fused="thirds",
)
_GPT_NEO = Family(
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    mlp="mlp",
    mlp_first="mlp.c_fc",
    mlp_second="mlp.c_proj",
    attention_out="attn.attention.out_proj",
    query="attn.attention.q_proj",
    key="attn.attention.k_proj",
    value="attn.attention.v_proj",
)
_GPT_NEOX = Family(
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    mlp="mlp",
    mlp_first="mlp.dense_h_to_4h",
    mlp_second="mlp.dense_4h_to_h",
    attention_out="attention.dense",
    query="attention.query_key_value",
    key="attention.query_key_value",
    value="attention.query_key_value",
    fused="heads",
)
_LLAMA = Family(
    blocks="model.layers",
    final_norm="model.norm",
    mlp="mlp",
    mlp_first="mlp.gate_proj",
    mlp_second="mlp.down_proj",
    attention_out="self_attn.o_proj",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
)

FAMILIES = {
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _GPT_NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


def named_taps(config: "PretrainedConfig") -> dict[str, Tap]:
    """Every named site of a model, in the order of the forward pass; none for other families."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        return {}
    layers: int = config.num_hidden_layers
    # hidden_states[0] is what the first block is given (embeddings and positions), those
    # between are the blocks' outputs, and the last is what the final norm returns.
    taps = {"hidden.0": Tap(f"{family.blocks}.0", side="input")}
    for block in range(layers):
        in_block = family.block_taps(block, config.num_attention_heads)
        taps |= {f"blocks.{block}.{name}": tap for name, tap in in_block.items()}
        if block + 1 < layers:
            taps[f"hidden.{block + 1}"] = Tap(f"{family.blocks}.{block}")
    taps[f"hidden.{layers}"] = Tap(family.final_norm)
    return taps
