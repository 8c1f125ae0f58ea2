"""Dropout switched off for good in a loaded model: policy and reference, old policy and new, must be alike."""

from __future__ import annotations

from torch import nn

# Attributes that forwards hand to functional dropout, where no module stands for it (attention in most families).
RATES = ("attention_dropout", "dropout", "attn_dropout", "attn_pdrop", "hidden_dropout", "activation_dropout")


def without_dropout(model: nn.Module) -> nn.Module:
    """Every dropout of the model, an adapter's too, lets everything through; its configuration stays as it is.

    GPT-2's default of 0.1 alone moves the loss of DPO at step 0 from 0.693 to 0.556.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model
