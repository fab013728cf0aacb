"""Tiny random networks, saved by each library's own ``save_pretrained``, and images of odd sizes and modes."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

SIDE, PATCH, WIDTH, PROJECTED = 48, 16, 32, 24
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 2 * len(LETTERS) + 2,
    "max_position_embeddings": 24,
    "bos_token_id": 2 * len(LETTERS),
    "eos_token_id": 2 * len(LETTERS) + 1,
    "pad_token_id": 2 * len(LETTERS) + 1,
}
OPEN_CLIP = {
    "embed_dim": PROJECTED,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": PATCH},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2},
}


def odd_images(count: int = 20) -> list[Image.Image]:
    """Return images of odd sizes, several modes among them."""
    rng = np.random.default_rng(7)
    modes = ("RGB", "L", "RGBA", "P", "CMYK")
    out = []
    for number in range(count):
        width, height = (int(side) for side in rng.integers(21, 160, 2))
        grain = int(rng.integers(1, 9))
        patches = rng.integers(0, 256, (-(-height // grain), -(-width // grain), 3))
        pixels = patches.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width]
        out.append(Image.fromarray(pixels.astype(np.uint8)).convert(modes[number % len(modes)]))
    return out


def build(kind: str) -> tuple[Any, Any]:
    """Return a tiny random network of transformers, and its image processor."""
    # By name: the settings are plain dictionaries, which the library's types do not take.
    library: Any = importlib.import_module("transformers")
    square = {"height": SIDE, "width": SIDE}
    torch.manual_seed(5)
    if kind == "vit":
        return library.ViTModel(library.ViTConfig(**VISION)), library.ViTImageProcessorPil(size=square)
    if kind == "vit-classifier":
        config = library.ViTConfig(**VISION)
        return library.ViTForImageClassification(config), library.ViTImageProcessorPil(size=square)
    if kind == "dinov2":
        config = library.Dinov2WithRegistersConfig(**{**VISION, "patch_size": 8})
        processor = library.BitImageProcessorPil(size={"shortest_edge": 53}, crop_size=square)
        return library.Dinov2WithRegistersModel(config), processor
    if kind == "resnet":
        config = library.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        return library.ResNetModel(config), library.ConvNextImageProcessorPil(size={"shortest_edge": 32})
    crop = library.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    if kind == "clip":
        text = {name: value for name, value in TEXT.items() if name != "pad_token_id"}
        config = library.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=PROJECTED)
        return library.CLIPModel(config), crop
    if kind == "clip-vision":
        config = library.CLIPVisionConfig(**VISION, projection_dim=PROJECTED)
        return library.CLIPVisionModelWithProjection(config), crop
    assert kind == "siglip"
    config = library.SiglipConfig(text_config=TEXT, vision_config=VISION)
    return library.SiglipModel(config), library.SiglipImageProcessorPil(size=square)


def save(folder: Path, kind: str) -> Any:
    """Save a tiny network with its processors; return it in evaluation mode."""
    model, processor = build(kind)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind in ("clip", "siglip"):
        tokenizer().save_pretrained(folder)
    return model.eval()


def tokenizer() -> Any:
    """Return a tokenizer of letters."""
    from transformers import CLIPTokenizer

    vocab = {letter: number for number, letter in enumerate(LETTERS)}
    vocab |= {f"{letter}</w>": number + len(LETTERS) for number, letter in enumerate(LETTERS)}
    vocab |= {"<|startoftext|>": 2 * len(LETTERS), "<|endoftext|>": 2 * len(LETTERS) + 1}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=24)


def save_open_clip(folder: Path, **preprocess: Any) -> Any:
    """Save a tiny network of open_clip as a folder that it can read; return it in evaluation mode."""
    from open_clip import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(6)
    model = CLIP(**OPEN_CLIP)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"model_cfg": OPEN_CLIP, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(facts))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model.eval()
