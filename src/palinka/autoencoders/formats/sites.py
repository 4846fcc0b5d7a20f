"""The sites of a language model by the names that other libraries have for them."""

import re

_HOOKS = {
    "resid": "hook_resid_post",
    "attn.out": "hook_attn_out",
    "mlp.pre": "mlp.hook_pre",
    "mlp.post": "mlp.hook_post",
    "mlp.out": "hook_mlp_out",
}
_PARTS = {hook: part for part, hook in _HOOKS.items()}
_IN_BLOCK = re.compile(r"blocks\.(\d{1,4})\.(.+)")
_HIDDEN = re.compile(r"hidden\.(\d{1,4})")

# What modules of a block return, in GPT-2, GPT-Neo, GPT-NeoX, Llama, Mistral and Qwen.
_MODULES = {
    None: "resid",
    "attn": "attn.out",
    "attn.c_proj": "attn.out",
    "attn.attention.out_proj": "attn.out",
    "attention": "attn.out",
    "attention.dense": "attn.out",
    "self_attn": "attn.out",
    "self_attn.o_proj": "attn.out",
    "mlp": "mlp.out",
    "mlp.c_proj": "mlp.out",
    "mlp.dense_4h_to_h": "mlp.out",
    "mlp.down_proj": "mlp.out",
    "mlp.c_fc": "mlp.pre",
    "mlp.dense_h_to_4h": "mlp.pre",
    "mlp.gate_proj": "mlp.pre",
    # The gated families call theirs `act_fn`: what it returns is no site of its own.
    "mlp.act": "mlp.post",
}
_PREFIXES = ("transformer.", "gpt_neox.", "model.")
_BLOCK_MODULE = re.compile(r"(?:h|layers)\.(\d{1,4})(?:\.(.+))?")
_NAMED_BY_LAYER = re.compile(r"(resid_post|mlp_out|attention_out)_layer_(\d{1,4})")
_LAYER_PARTS = {"resid_post": "resid", "mlp_out": "mlp.out", "attention_out": "attn.out"}


def hook_of(site: str, layers: int | None = None) -> str | None:
    """TransformerLens' name for a site, where it has one.

    Args:
        site: Such as `blocks.6.mlp.pre`.
        layers: How many blocks the model has: what comes after the last one's final norm has no
            name there, and whether `hidden.6` is that depends on it.
    """
    inside, hidden = _IN_BLOCK.fullmatch(site), _HIDDEN.fullmatch(site)
    if inside and inside[2] in _HOOKS:
        return f"blocks.{inside[1]}.{_HOOKS[inside[2]]}"
    if hidden and (int(hidden[1]) == 0 or (layers is not None and int(hidden[1]) < layers)):
        return f"blocks.{hidden[1]}.hook_resid_pre"
    return None


def site_of_hook(hook: str) -> str | None:
    """Our name for a hook of TransformerLens, where there is one."""
    inside = _IN_BLOCK.fullmatch(hook)
    if inside is None:
        return None
    if inside[2] == "hook_resid_pre":
        block = int(inside[1])
        return f"blocks.{block - 1}.resid" if block else "hidden.0"
    part = _PARTS.get(inside[2])
    return None if part is None else f"blocks.{inside[1]}.{part}"


def site_of_module(module: str) -> str | None:
    """Our name for what a module of a Hugging Face model returns, where there is one.

    Args:
        module: Its path, such as `h.6.mlp.act`; it may begin with the name of the base model.
    """
    for prefix in _PREFIXES:
        if module.startswith(prefix):
            module = module.removeprefix(prefix)
            break
    inside = _BLOCK_MODULE.fullmatch(module)
    part = _MODULES.get(inside[2]) if inside else None
    return None if inside is None or part is None else f"blocks.{inside[1]}.{part}"


def site_of_label(label: str) -> str | None:
    """Our name for a label such as `resid_post_layer_8`, or for a module's path."""
    labelled = _NAMED_BY_LAYER.fullmatch(label)
    if labelled:
        return f"blocks.{labelled[2]}.{_LAYER_PARTS[labelled[1]]}"
    return site_of_module(label)


def within_base_model(module: str) -> str:
    """A module's path as the model without its head has it, such as `h.6.mlp.act`."""
    for prefix in _PREFIXES:
        if module.startswith(prefix):
            return module.removeprefix(prefix)
    return module
