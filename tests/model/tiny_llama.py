"""Tiny random Llamas written by transformers, which is the judge of ours, and documents for them to read."""

import torch

from ahkio.model.hub import load_model

VOCAB = 97
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "no groups": {"num_key_value_heads": 4},
    "one group": {"num_key_value_heads": 1},
    "other theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    "llama3 scaling": {"rope_parameters": LLAMA3},
    "wide heads": {"head_dim": 24},
    "other eps": {"rms_norm_eps": 1e-2},
}


def write(folder, seed=0, **settings):
    """A folder with a random Llama as transformers saves it; its weights are far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | settings
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def theirs(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def pair(folder, **settings):
    """Our Llama and transformers' own, of the same folder."""
    write(folder, **settings)
    return load_model(folder), theirs(folder)


def documents(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]


def packed(texts):
    """ids, positions, bounds and the longest length of documents laid end to end in one row."""
    lengths = [len(text) for text in texts]
    ids = torch.tensor([token for text in texts for token in text])[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return ids, positions, torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths)


def one(ids_T, start=0):
    """The arguments of a forward pass over one document whose first token is at position `start`."""
    ids = torch.as_tensor(ids_T)[None]
    return ids, torch.arange(start, start + ids.shape[1])[None], torch.tensor([0, ids.shape[1]]).int(), ids.shape[1]


def logits(model, *arguments):
    return model.logits(model(*arguments))


def close(mine, wanted, relative=1e-5):
    """Whether two tensors are the same but for rounding: within `relative` of the largest value."""
    return (mine - wanted).abs().max().item() <= relative * wanted.abs().max().item()
