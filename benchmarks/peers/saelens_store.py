"""SAELens' `ActivationsStore`, which reads a model through TransformerLens during training.

Its model is a `HookedTransformer` with the same weights, which stops after the block that is read.
The store mixes rows in memory and keeps nothing; ours, measured with it, shuffles, checks and
writes every row to disk.
"""

from typing import Any

import torch
from torch import Tensor

from peers.absent import peer_module


class SAELensStore:
    """Activations of one hook of a GPT-2, batch by batch.

    Args:
        model: A `GPT2LMHeadModel` in float32.
        tokens: Blocks of tokens, `(blocks, tokens)`, which it goes through again and again.
        hook: TransformerLens' name of the site.
        width: The site's width.
        rows: Rows of a batch.
        autocast: Whether its model runs in bfloat16 autocast.
    """

    def __init__(
        self, model: Any, tokens: Tensor, hook: str, width: int, rows: int, autocast: bool = False
    ) -> None:
        lens = peer_module("transformer_lens", "sae-lens")
        conversion = peer_module("transformer_lens.pretrained.weight_conversions", "sae-lens")
        stores = peer_module("sae_lens.training.activations_store", "sae-lens")
        datasets = peer_module("datasets", "datasets")
        own = model.config
        config = lens.HookedTransformerConfig(
            n_layers=own.n_layer,
            d_model=own.n_embd,
            n_ctx=own.n_positions,
            d_head=own.n_embd // own.n_head,
            n_heads=own.n_head,
            d_mlp=4 * own.n_embd,
            d_vocab=own.vocab_size,
            act_fn="gelu_new",
            eps=own.layer_norm_epsilon,
            normalization_type="LN",
            original_architecture="GPT2LMHeadModel",
            device="cpu",
        )
        self.model = lens.HookedTransformer(config)
        self.model.load_and_process_state_dict(
            conversion.convert_gpt2_weights(model, config),
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
        context = tokens.shape[1]
        self.store = stores.ActivationsStore(
            self.model,
            datasets.Dataset.from_dict({"tokens": tokens.tolist()}),
            streaming=False,
            hook_name=hook,
            hook_head_index=None,
            context_size=context,
            d_in=width,
            n_batches_in_buffer=2 * rows // context,
            total_training_tokens=tokens.numel(),
            store_batch_size_prompts=rows // context,
            train_batch_size_tokens=rows,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
            autocast_lm=autocast,
        )

    def __call__(self) -> Tensor:
        """The next batch, for which it runs its model on as many tokens."""
        return next(self.store)

    def activations(self, tokens: Tensor) -> Tensor:
        """Activations of blocks of tokens, `(blocks, tokens, width)`."""
        return self.store.get_activations(tokens)
