"""The paper's numbers (Tables 1 to 3), shown beside ours with the label "paper"."""

from __future__ import annotations

NOTE = "The paper's column was measured with other weights on other data; `fid_micro` is not FID."

TABLE_1: dict[str, dict[str, dict[str, float]]] = {
    "coco": {
        "SD 1.5": {"clip_score": 30.62},
        "SDXL": {"clip_score": 31.17},
        "Emu (13B)": {"clip_score": 28.6},
        "Emu2-Gen (37B)": {"clip_score": 29.7},
        "NExT-GPT (7B)": {"clip_score": 29.31},
        "M2Chat (7B)": {"clip_score": 28.46},
        "M2Chat (M3FT, 7B)": {"clip_score": 29.87},
    },
    "cc3m": {
        "SD 1.5": {"fid": 30.62, "clip_score": 23.48},
        "SDXL": {"fid": 24.26, "clip_score": 29.91},
        "MiniGPT-5 (7B)": {"fid": 31.47, "clip_score": 22.00},
        "M2Chat (7B)": {"fid": 28.71, "clip_score": 21.87},
        "M2Chat (M3FT, 7B)": {"fid": 26.15, "clip_score": 23.51},
    },
}
"""Data set to model to metric: COCO 2014 and CC3M validation."""

TABLE_2: dict[str, dict[str, float]] = {
    "VLM+SD finetune (7B)": {"bleu_1": 4.21, "bleu_2": 4.18, "rouge_l": 6.78, "inter_rel": 20.05},
    "M2Chat (7B)": {"bleu_1": 6.02, "bleu_2": 5.88, "rouge_l": 10.14, "inter_rel": 24.68},
    "M2Chat (M3FT, 7B)": {"bleu_1": 6.98, "bleu_2": 6.44, "rouge_l": 11.40, "inter_rel": 25.57},
}
"""Model to metric: MMDialog validation."""

TABLE_3: dict[str, tuple[str, str, str]] = {
    "Emu2 (33B)": ("4B", "100M", "-"),
    "CAFE (70B)": ("4B", "-", "20000 A100 h"),
    "SEED-LLaMA-8B (7B)": ("1B", "-", "9000 A100 h"),
    "SEED-LLaMA-14B (13B)": ("1B", "-", "14000 A100 h"),
    "DreamLLM (7B)": ("-", "32M", "2240 A100 h"),
    "MiniGPT-5 (7B)": ("-", "2.5M", "-"),
    "M2Chat (7B)": ("299M", "2M", "100 A100 h"),
}
"""Model to extra parameters, data and time. The 299 M are the megabytes of the published file."""

FINAL_MODEL = "M2Chat (M3FT, 7B)"
"""The paper's name for the model after both stages."""


def paper_cell(dataset: str, metric: str, model: str = FINAL_MODEL) -> str:
    """The paper's number as a cell of a table, labelled as such.

    Args:
        dataset: ``coco``, ``cc3m`` or ``mmdialog``; the paper has no numbers for others.
        metric: Name of the metric. ``fid_micro`` stands beside the paper's FID.
        model: Name of the model in the paper's tables.

    Returns:
        Such as ``paper: 6.98``; empty if the paper has no number.
    """
    tables = {**TABLE_1, "mmdialog": TABLE_2}
    value = tables.get(dataset, {}).get(model, {}).get("fid" if metric == "fid_micro" else metric)
    return "" if value is None else f"paper: {value:.2f}"
