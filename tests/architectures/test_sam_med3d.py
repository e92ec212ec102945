"""SAM-Med3D against the published implementation: every prompt, the training example, and the exact short way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.fill import fill_state_dict, make_input

from nnunet_ext.architectures.sam_med3d import VARIANTS, SAMMed3D
from nnunet_ext.architectures.sam_med3d.attention import WindowAttention
from nnunet_ext.checkpoints import build_from_official
from nnunet_ext.losses import binary_dice_ce
from nnunet_ext.models.sam_med3d import SIZES

GOLDEN = Path(__file__).parent.parent / "golden"

# Name -> (points, mask, three masks); masks are made in `decode_case`.
CASES = {
    "p1_nomask": (1, None, False),
    "p1_zeromask": (1, "zeros", False),
    "p1_mask": (1, "given", False),
    "p3_nomask": (3, None, False),
    "p3_mask": (3, "given", False),
    "p3_chain_mask": (3, "p1_zeromask", False),
    "p0_maskonly": (0, "given", False),
    "p3_mask_multi": (3, "given", True),
    "b2_p2_nomask": (2, None, False),
}
TINY = {
    "img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "out_channels": 48,
    "window_size": 11, "global_attention": (1,), "iou_hidden": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "sammed3d_small.npz")


@pytest.fixture(scope="module")
def meta(golden):
    return json.loads(str(golden["meta_json"]))


@pytest.fixture(scope="module")
def model(golden, meta):
    shapes = json.loads(str(golden["state_dict_json"]))
    config = meta["config"]
    model = build_from_official(
        "sam_med3d",
        {key: torch.from_numpy(value) for key, value in fill_state_dict(shapes).items()},
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        out_channels=config["out_chans"],
        window_size=config["window_size"],
        global_attention=config["global_attn_indexes"],
        iou_hidden=config["iou_head_hidden_dim"],
    )
    assert list(model.state_dict()) == list(shapes)
    return model


@pytest.fixture(scope="module")
def embedding(model, golden, meta):
    with torch.no_grad():
        return model.image_encoder(image(meta))


def image(meta) -> torch.Tensor:
    facts = meta["inputs"]["image"]
    return torch.from_numpy(make_input(facts["make_input"], tuple(facts["shape"])))


def close(found: torch.Tensor, golden, name: str) -> None:
    """Within 1e-5 of the largest entry: single-precision sums of n products, taken in another order, differ by some
    sqrt(n) 2^-24 of it, and those of a patch have n = 4096."""
    found = found.detach().numpy()
    allowed = 1e-5 * golden[f"{name}/stats"][2]
    assert tuple(golden[f"{name}/shape"]) == found.shape, name
    stats = np.array([found.mean(dtype=np.float64), found.std(dtype=np.float64), np.abs(found).max()])
    np.testing.assert_allclose(stats, golden[f"{name}/stats"], rtol=0, atol=allowed, err_msg=name)
    if name in golden:
        np.testing.assert_allclose(found, golden[name], rtol=0, atol=allowed, err_msg=name)
    else:
        sampled = found.reshape(-1)[:: int(golden[f"{name}/flat_step"])]
        np.testing.assert_allclose(sampled, golden[f"{name}/flat_sub"], rtol=0, atol=allowed, err_msg=name)


def decode_case(name: str, model, embedding, golden, meta):
    count, mask, multimask = CASES[name]
    points, labels = torch.from_numpy(golden["points"])[None], torch.from_numpy(golden["labels"])[None]
    if name.startswith("b2"):
        points, labels = torch.tensor(meta["batch2_points"]), torch.tensor(meta["batch2_labels"])
    points, labels = (points[:, :count], labels[:, :count]) if count else (None, None)
    facts = meta["inputs"]["lowres_mask"]
    masks = {
        None: None,
        "zeros": torch.zeros(facts["shape"]),
        "given": facts["scale"] * torch.from_numpy(make_input(facts["make_input"], tuple(facts["shape"]))),
        "p1_zeromask": torch.from_numpy(golden["p1_zeromask/low_res_masks"]),
    }
    with torch.no_grad():
        prompts = model.prompt_encoder(points, labels, masks[mask])
        return prompts, model.decode(embedding, points, labels, masks[mask], multimask)


def test_image_encoder_step_by_step(model, embedding, golden, meta):
    encoder = model.image_encoder
    with torch.no_grad():
        x = encoder.patch_embed(image(meta)) + encoder.pos_embed
        close(x, golden, "patch_plus_pos")
        close(encoder.blocks[0](x), golden, "block0")
    close(embedding, golden, "image_embedding")
    close(model.prompt_encoder.dense_position(), golden, "dense_pe")


@pytest.mark.parametrize("name", CASES)
def test_every_prompt(name, model, embedding, golden, meta):
    (sparse, dense), (masks, iou) = decode_case(name, model, embedding, golden, meta)
    close(masks, golden, f"{name}/low_res_masks")
    np.testing.assert_allclose(iou.numpy(), golden[f"{name}/iou"], atol=1e-5)
    if name == "p0_maskonly":
        assert sparse.shape[1] == 0
    else:
        close(sparse, golden, f"{name}/sparse")
    expected = tuple(golden[f"{name}/dense/shape"])
    close(dense.expand(expected), golden, f"{name}/dense")


def test_upsampled_mask(model, golden, meta):
    with torch.no_grad():
        logits = model(image(meta), *(torch.from_numpy(golden[k])[None][:, :1] for k in ("points", "labels")),
                       torch.zeros(meta["inputs"]["lowres_mask"]["shape"]))  # fmt: skip
    close(logits, golden, "p1_zeromask/upsampled")
    assert int((logits > 0).sum()) == int(golden["p1_zeromask/n_pos_voxels"])


def test_training_example(model, golden, meta):
    """Five steps of one interaction, each mask fed to the next with its gradient: losses and all gradient norms."""
    case = meta["train_case"]
    grid = torch.stack(torch.meshgrid(*[torch.arange(64)] * 3, indexing="ij"))
    squared = (grid - torch.tensor([30, 22, 38]).reshape(3, 1, 1, 1)).square().sum(0)
    target = (squared < 225).float()[None, None]
    assert int(target.sum()) == int(golden["train/gt_voxels"])
    model.zero_grad()
    embedding = model.image_encoder(image(meta))
    mask, losses = torch.zeros(1, 1, 16, 16, 16), []
    for step in case["steps"]:
        points, labels = (None, None) if step is None else (torch.tensor(value) for value in step)
        mask, _ = model.decode(embedding, points, labels, mask)
        losses.append(binary_dice_ce(F.interpolate(mask, (64,) * 3, mode="trilinear"), target))
    total = sum(losses)
    total.backward()
    np.testing.assert_allclose([loss.item() for loss in losses], golden["train/losses"], atol=1e-5)
    np.testing.assert_allclose(total.item(), golden["train/total"], atol=1e-4)
    # Rounding adds up over five rounds and all voxels; some norms are nothing but rounding (biases of keys).
    expected = json.loads(str(golden["train/grad_norms_json"]))
    largest = max(norm for norm in expected.values() if norm)
    for name, parameter in model.named_parameters():
        found = 0.0 if parameter.grad is None else float(parameter.grad.norm())
        assert found == pytest.approx(expected[name] or 0.0, rel=2e-3, abs=1e-6 * largest), name
    model.zero_grad(set_to_none=True)


def test_published_size():
    with torch.device("meta"):
        model = SAMMed3D(**VARIANTS["vit_b_ori"])
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts == {"image_encoder": 92_924_928, "prompt_encoder": 8_668, "mask_decoder": 7_575_636}
    assert len(model.state_dict()) == 324
    # A plan of size base starts from published weights.
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in SIZES["base"]["sizes"].items()} == {
        **VARIANTS["vit_b_ori"]
    }


@pytest.mark.parametrize("positions", ["official", "decomposed"])
@pytest.mark.parametrize(("grid", "window"), [(4, 7), (3, 4), (4, 4)])
def test_padding_as_one_key_is_exact(grid, window, positions):
    """Against attention over the padded window, forward and backward, where every part matters."""
    torch.manual_seed(0)
    attention = WindowAttention(12, 2, window, positions).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    x = torch.randn(2, grid, grid, grid, 12, dtype=torch.double, requires_grad=True)
    results = []
    for padded in (False, True):
        given = F.pad(x, (0, 0) + (0, window - grid) * 3) if padded else x
        out = attention(given)[:, :grid, :grid, :grid]
        gradients = torch.autograd.grad((out**3).sum(), [x, *attention.parameters()])
        results.append((out, *gradients))
    for short, long in zip(*results, strict=True):
        torch.testing.assert_close(short, long, rtol=1e-6, atol=1e-9)


def test_official_positions_are_those_of_the_published_sums():
    """bias[q, k] = d[q; kw] + h[qd, qh, w' = kd; kw] + w[qd, qh, w' = kh; kw], written out for single voxels."""
    torch.manual_seed(0)
    attention = WindowAttention(4, 1, 3)
    for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table)
    q = torch.randn(1, 1, 27, 4)
    found = attention._position(q, 3).reshape(3, 3, 3, 3, 3, 3)
    at = q.reshape(3, 3, 3, 4)
    for a, b, c, d, h, w in [(0, 1, 2, 2, 0, 1), (2, 2, 0, 1, 1, 1), (1, 0, 1, 0, 2, 2)]:
        expected = (
            at[a, b, c] @ attention.rel_pos_d[a - w + 2]
            + at[a, b, d] @ attention.rel_pos_h[b - w + 2]
            + at[a, b, h] @ attention.rel_pos_w[h - w + 2]
        )
        torch.testing.assert_close(found[a, b, c, d, h, w], expected)


def test_whole_encoder_with_and_without_cutting_windows():
    torch.manual_seed(0)
    model = SAMMed3D(2, **TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        short = model.image_encoder(x)
        model.image_encoder.blocks[0].cuts_windows = True
        torch.testing.assert_close(model.image_encoder(x), short, atol=2e-5, rtol=1e-4)


def test_bad_sizes_and_inputs_are_named():
    with pytest.raises(ValueError, match="img_size 30 must be a multiple of patch_size 4"):
        SAMMed3D(**{**TINY, "img_size": 30})
    with pytest.raises(ValueError, match="out_channels 64 must be a multiple of 48"):
        SAMMed3D(**{**TINY, "out_channels": 64})
    with pytest.raises(ValueError, match=r"shape \(1, 32, 32, 32\), not \(1, 16, 32, 32\)"):
        SAMMed3D(**TINY).image_encoder(torch.zeros(1, 1, 16, 32, 32))
    with pytest.raises(ValueError, match="known: vit_b_ori"):
        build_from_official("sam_med3d", {}, variant="vit_h")


@pytest.mark.parametrize("positions", ["official", "aligned"])
def test_a_click_has_the_features_of_its_cell_or_of_the_exchanged_one(positions):
    model = SAMMed3D(**{**TINY, "grid_positions": positions})
    encoder = model.prompt_encoder
    click = torch.tensor([[[5.5, 17.5, 29.5]]])  # amid cell (1, 4, 7): four voxels per cell
    features = encoder.pe_layer((click + 0.5) / 32)[0, 0]
    cell = (1, 4, 7) if positions == "aligned" else (4, 1, 7)
    torch.testing.assert_close(encoder.dense_position()[(0, slice(None), *cell)], features)
    with pytest.raises(ValueError, match="grid_positions must be one of official, aligned, not 'both'"):
        SAMMed3D(**{**TINY, "grid_positions": "both"})
