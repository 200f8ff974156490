"""Small trainable additions to a trained network: fine-tune a few weights, keep a small file for each task or site."""

from medseg.core.adapters.lora import LowRankUpdate, add_lora, merge_lora, merged_state_dict
from medseg.core.adapters.lora_state import load_lora, lora_state_dict

__all__ = [
    "LowRankUpdate",
    "add_lora",
    "load_lora",
    "lora_state_dict",
    "merge_lora",
    "merged_state_dict",
]
