"""Vision transformers' blocks on some of the tokens: shorter sequences, or all of them under a mask."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.vision_transformer import EncoderBlock

from .backbone import Backbone


def encoder_blocks(backbone: Backbone) -> list[EncoderBlock]:
    """Return the blocks of a vision transformer.

    Raises:
        ValueError: If it is another network.
    """
    blocks = backbone.sources(EncoderBlock)
    tokens, _ = backbone.blocks[0].in_shape if len(backbone.blocks[0].in_shape) == 2 else (0, 0)
    side = round(max(0, tokens - 1) ** 0.5)
    if blocks is None or tokens != side**2 + 1:
        raise ValueError(
            f"backbone {backbone.name}: expected a vision transformer of torchvision's, with one class token before "
            "those of a square image's patches, got another network. Use vit4-w32-p3, vit_tiny or vit_b_16."
        )
    return blocks


def run_tokens(
    block: EncoderBlock, x: Tensor, keep: Tensor | None = None, *, shown: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Execute a block on sequences.

    Args:
        block: Which one.
        x: Tokens, the class token first. Shape (N, T, D).
        keep: How much of each token the others attend to, 0…1. Shape (N, T). What has 0 changes no other token, so that
            the others become what they are in a shorter sequence.
        shown: Whether the second result is wanted.

    Returns:
        Tokens, shape (N, T, D), and how much the class token attends to each, the mean over heads, shape (N, T).
    """
    attention = block.self_attention
    projected = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if keep is None and not shown:
        seen, shares = F.scaled_dot_product_attention(query, key, value), None
    else:
        weights = attention_weights(query @ key.mT * query.shape[-1] ** -0.5, keep)
        seen, shares = weights @ value, weights[:, :, 0].mean(1)
    x = x + attention.out_proj(seen.transpose(1, 2).flatten(2))
    return x + block.mlp(block.ln_2(x)), shares


def attention_weights(scores: Tensor, keep: Tensor | None) -> Tensor:
    """Return the softmax of scores in which each token is attended to as far as it is kept, and always by itself.

    Attention masking of DynamicViT (Rao et al. 2021, equation 11).

    Args:
        scores: Shape (N, heads, T, T).
        keep: 0…1. Shape (N, T).
    """
    if keep is None:
        return scores.softmax(-1)
    itself = torch.eye(scores.shape[-1], device=scores.device)
    policy = itself + (1 - itself) * keep[:, None, None, :]
    weights = policy * (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def token_macs(block: EncoderBlock, tokens: Tensor) -> Tensor:
    """Return what a block costs on sequences of so many tokens, in MACs: 4TD² + 2TDM + 2T²D, with an MLP of width M.

    Args:
        block: Which one.
        tokens: T of each row, the class token included; it need not be whole. Shape (N,).
    """
    width = block.self_attention.embed_dim
    hidden = block.mlp.get_parameter("0.weight").shape[0]
    return tokens * (4 * width**2 + 2 * width * hidden) + 2 * width * tokens.square()


def forward_dropped(backbone: Backbone, x: Tensor, most: float) -> Tensor:
    """Execute a vision transformer without some of the tokens, drawn by torch's global generator.

    Args:
        backbone: The transformer.
        x: Prepared images. Shape (N, C, H, W).
        most: Largest share of the tokens that is left out; how many is drawn for all images together, evenly.

    Returns:
        Logits. Shape (N, classes).
    """
    x = backbone.stem(x)
    count = x.shape[1] - 1
    left = count - int(torch.randint(int(most * count) + 1, ()))
    places = torch.rand((len(x), count), device=x.device).argsort(1)[:, :left]
    x = x[torch.arange(len(x), device=x.device).unsqueeze(1), F.pad(1 + places, (1, 0))]
    for block in backbone.blocks:
        x = block.run(x)
    return backbone.head(x)
