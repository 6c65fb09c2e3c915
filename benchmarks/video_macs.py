"""MACs of VideoMAE under recipes, MACs and parameters of the proposals that read video, beside what is published ->
results/video_macs.csv.

python benchmarks/video_macs.py
"""

from __future__ import annotations

import sys

from results import write
from tokensieve import sieve
from tokensieve.data.inputs import InputSpec
from tokensieve.measure import macs
from tokensieve.zoo import video_classifier, video_proposal, without_memory

# name, frames, side, published GMAC as printed, and by whom: up to the last feature map, with the papers' BatchNorms
FEATURES = [
    ("x3d_s", 8, 160, "1.249", "PaPr, counted again"),
    ("x3d_m", 8, 224, "2.449", "PaPr, counted again"),
    ("x3d_m", 16, 224, "4.897", "PaPr, counted again"),
    ("slowonly_r50", 8, 224, "41.9", "PaPr (mmaction2's 54.75 at 256 pixels, scaled)"),
    ("slowonly_r101", 8, 224, "85.67", "PaPr (mmaction2's 112 at 256 pixels, scaled)"),
    ("slowonly_r50", 8, 256, "54.75", "mmaction2"),
    ("slowonly_r101", 8, 256, "112", "mmaction2"),
]
# the same of the whole network with 400 classes, and pure
WHOLE = [
    ("x3d_s", 13, 160, "1.96", "SlowFast's model zoo"),
    ("x3d_m", 16, 224, "4.73", "SlowFast's model zoo"),
    ("x3d_l", 16, 312, "18.37", "SlowFast's model zoo"),
    ("slowonly_r50", 8, 256, "54.52", "PyTorchVideo"),
]
# name, published parameters of the network with 400 classes, in millions as printed or exactly, and by whom
PARAMETERS = [
    ("x3d_s", "3794274", "PyTorchVideo's network"),
    ("x3d_m", "3794274", "PyTorchVideo's network"),
    ("x3d_l", "6.15", "PyTorchVideo"),
    ("slowonly_r50", "32.45", "PyTorchVideo"),
    ("slowonly_r101", "", ""),
]
# VideoMAE on 16 x 3 x 224 x 224 with 400 classes: size, recipe, published GMAC as printed or None, and by whom
X3D_S = "proposal=x3d_s, proposal_norm=shared"
X3D_M = "proposal=x3d_m, proposal_norm=shared, proposal_size=host"
RECOUNTED, PAPER = "PaPr, counted again", "PaPr"
HOSTS = [
    ("B", "", "180.5", RECOUNTED),
    ("L", "", "597.2", RECOUNTED),
    ("B", "papr(keep=0.45, significance=motion)", "70.96", RECOUNTED),
    ("B", "papr(keep=0.35, significance=motion)", "53.98", RECOUNTED),
    ("L", "papr(keep=0.5, significance=motion)", "269.63", RECOUNTED),
    ("L", "papr(keep=0.3, significance=motion)", "155.38", RECOUNTED),
    ("B", f"papr(keep=0.45, {X3D_S})", "72.2", RECOUNTED),
    ("B", f"papr(keep=0.35, {X3D_S})", "55.2", RECOUNTED),
    ("L", f"papr(keep=0.5, {X3D_S})", "270.9", RECOUNTED),
    ("L", f"papr(keep=0.3, {X3D_S})", "156.6", RECOUNTED),
    # printed as 76, 59, 275 and 160
    ("B", f"papr(keep=0.45, {X3D_M})", "76", PAPER),
    ("B", f"papr(keep=0.35, {X3D_M})", "59", PAPER),
    ("L", f"papr(keep=0.5, {X3D_M})", "275", PAPER),
    ("L", f"papr(keep=0.3, {X3D_M})", "160", PAPER),
    ("L", "tome(r=65)", "281", "ToMe"),
    ("L", "tome(r=100)", "184", "ToMe"),
]
SIZES = {
    "B": {},
    "L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


def videomae(size: str):
    """VideoMAE of a size with 400 classes, without memory for its weights."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    with without_memory():
        model = VideoMAEForVideoClassification(VideoMAEConfig(num_labels=400, **SIZES[size])).eval()
    embeddings = model.videomae.embeddings
    embeddings.position_embeddings = embeddings.position_embeddings.to("meta")
    return model


def host_rows() -> list[dict]:
    """What each of `HOSTS` costs, proposal included."""
    rows, models = [], {size: videomae(size) for size in SIZES}
    for size, recipe, expected, source in HOSTS:
        fast = sieve(models[size], recipe, pretrained=False).to("meta")
        count = macs(fast, InputSpec((16, 3, 224, 224), "TCHW"), fvcore_compat=True) / 1e9
        rows.append(
            {
                "network": f"VideoMAE-{size}", "what": f"GMAC, {recipe or 'dense'}", "frames": 16, "side": 224,
                "found": count, "published": expected, "by": source,
                "to_the_digit": f"{count:.{_digits(expected)}f}" == expected,
            }
        )  # fmt: skip
    return rows


def main() -> int:
    rows = host_rows()
    wrong = sum(not row["to_the_digit"] for row in rows)
    for whole, checks in ((False, FEATURES), (True, WHOLE)):
        for name, frames, side, expected, source in checks:
            network = video_classifier(name) if whole else video_proposal(name)
            count = macs(network, InputSpec((3, frames, side, side), "CTHW"), fvcore_compat=not whole) / 1e9
            agrees = f"{count:.{_digits(expected)}f}" == expected
            wrong += not agrees
            rows.append(
                {
                    "network": name, "what": "GMAC, whole and pure" if whole else "GMAC up to the last feature map",
                    "frames": frames, "side": side, "found": count, "published": expected, "by": source,
                    "to_the_digit": agrees,
                }
            )  # fmt: skip
    for name, expected, source in PARAMETERS:
        count = _parameters(video_classifier(name))
        found = f"{count / 1e6:.{_digits(expected)}f}" if "." in expected else str(count)
        wrong += bool(expected) and found != expected
        rows.append(
            {
                "network": name, "what": "parameters with 400 classes", "found": str(count), "published": expected,
                "by": source, "to_the_digit": found == expected if expected else "",
            }
        )  # fmt: skip
    backbone = _parameters(video_proposal("x3d_s"))
    wrong += backbone != 2_089_986
    rows.append(
        {
            "network": "x3d_s", "what": "parameters up to the last feature map", "found": str(backbone),
            "published": "2089986", "by": "mmaction2's network", "to_the_digit": backbone == 2_089_986,
        }
    )  # fmt: skip
    for row in rows:
        print(f"{row['network']:14} {row['what']:38} {row.get('frames', ''):>3} x {row.get('side', ''):<4} "
              f"{row['found']!s:>20}  published {row['published']}")  # fmt: skip
    write("video_macs.csv", rows)
    return 1 if wrong else 0


def _digits(printed: str) -> int:
    return len(printed.partition(".")[2])


def _parameters(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    sys.exit(main())
