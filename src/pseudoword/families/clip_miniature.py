"""A CLIP tokenizer and text encoders of random weights, small enough for tests, in the real classes."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTokenizer

WORDS = ("toy", "cat", "dog", "fish", "red", "photo", "painting", "style", "the", "a", "of", "in")


def text_encoder(kind: Any, tokenizer: CLIPTokenizer, width: int, **more: Any) -> Any:
    """Return a text encoder of three layers, as `kind`, for a tokenizer; `more` are values of its configuration."""
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "projection_dim": width,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    made = kind(CLIPTextConfig(**{**values, **more}))
    made.get_input_embeddings().weight.data.normal_(std=0.3)
    return made


def vae(**more: Any) -> Any:
    """Return a VAE that halves 16-pixel pictures."""
    return AutoencoderKL(
        block_out_channels=(8, 16),  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        latent_channels=4,
        sample_size=16,
        **more,
    )


def clip_tokenizer(max_length: int = 77, *, size: int = 0, **more: Any) -> CLIPTokenizer:
    """Return a CLIP tokenizer that knows every byte and a few whole words; `more` are options of it.

    With a `size` it has that many tokens, of which no text makes the others.
    """
    letters = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    pieces: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                pieces.append(pair[0] + pair[1])
            parts = [pair[0] + pair[1], *parts[2:]]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *dict.fromkeys(pieces)]
    vocabulary += [f"unused {i}" for i in range(size - len(vocabulary) - 2)]
    ids = {piece: i for i, piece in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=max_length, **more)  # pyright: ignore[reportArgumentType]
