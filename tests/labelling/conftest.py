"""Tiny teachers with random weights, one per family, saved like their repositories on the Hub."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

WORDS = (
    *("a", "an", "the", "two", "dog", "cat", "man", "woman", "ball", "red", "blue", "green", "big", "runs", "sits"),
    *("on", "in", "with", "grass", "beach", "photo", "of", "describe", "this", "image", "short", "sentence", "what"),
)
SIDE = 32  # pixels
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SMALL, "max_position_embeddings": 64}
VISION = {**SMALL, "image_size": SIDE, "patch_size": 16}
CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %} {{ part['text'] }}{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def words_tokenizer(*special: str, **names: str) -> PreTrainedTokenizerFast:
    """One token per word, like a decoder's byte-pair tokenizer without special tokens."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *special, *WORDS]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    standard = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **standard, additional_special_tokens=list(special), **names
    )


def bert_tokenizer() -> BertTokenizer:
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    return BertTokenizer({token: number for number, token in enumerate(tokens)})


def blip():
    tokenizer = bert_tokenizer()
    begins = len(tokenizer)  # a token that the model has and the tokenizer hasn't
    ids = {"bos_token_id": begins, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**TEXT, **ids, "vocab_size": begins + 1, "encoder_hidden_size": 16}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=8, image_text_hidden_size=8)
    image_processor = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    return BlipForConditionalGeneration(config), BlipProcessor(image_processor, tokenizer)


def blip_2():
    tokenizer = words_tokenizer()
    image_processor = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=3)
    text = {
        "model_type": "opt",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**TEXT, "vocab_size": 20, "encoder_hidden_size": 16},
        text_config=text,
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return Blip2ForConditionalGeneration(config), processor


def git():
    tokenizer = bert_tokenizer()
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = GitConfig(vision_config=VISION, vocab_size=len(tokenizer), **TEXT, **ids)
    size = {"shortest_edge": SIDE}
    image_processor = CLIPImageProcessor(size=size, crop_size={"height": SIDE, "width": SIDE})
    return GitForCausalLM(config), GitProcessor(image_processor, tokenizer)


class Separate:
    """An image processor and a tokenizer without a processor that wraps them, as in older models."""

    def __init__(self, *parts):
        self.parts = parts

    def save_pretrained(self, folder):
        for part in self.parts:
            part.save_pretrained(folder)


def vit_gpt2():
    tokenizer = words_tokenizer()
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    decoder = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, add_cross_attention=True, **ids
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 2, 2
    model = VisionEncoderDecoderModel(config)
    model.generation_config.update(max_length=16, num_beams=4, decoder_start_token_id=1, **ids)
    return model, Separate(ViTImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer)


def florence():
    tokenizer = words_tokenizer("<image>", extra_special_tokens={"image_token": "<image>"})
    image_processor = CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    image_processor.image_seq_length = 2
    vision = {
        "embed_dim": [8],
        "num_heads": [2],
        "num_groups": [2],
        "depths": [1],
        "patch_size": [7],
        "patch_stride": [32],
        "patch_padding": [3],
        "patch_prenorm": [False],
        "projection_dim": 16,
        "window_size": 2,
        "max_temporal_embeddings": 4,
        "max_position_embeddings": 4,
    }
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    config = Florence2Config(
        text_config=text, vision_config=vision, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    return Florence2ForConditionalGeneration(config), Florence2Processor(image_processor, tokenizer)


def idefics3():
    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>")
    tokenizer = words_tokenizer(*special)
    image_processor = Idefics3ImageProcessor(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    text = {"model_type": "llama", **TEXT, "vocab_size": len(tokenizer), "num_key_value_heads": 2}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256}
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    config = Idefics3Config(
        vision_config=VISION, text_config=text, scale_factor=2, image_token_id=image_token_id, pad_token_id=0
    )
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=1, chat_template=CHAT)
    return Idefics3ForConditionalGeneration(config), processor


FAMILIES = {
    "blip": blip,
    "blip-2": blip_2,
    "git": git,
    "vit-gpt2": vit_gpt2,
    "florence2": florence,
    "idefics3": idefics3,
}


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """Folder of a family's tiny teacher."""
    folders = {}

    def folder_of(family: str):
        if family not in folders:
            torch.manual_seed(len(folders))
            model, processor = FAMILIES[family]()
            for weight in model.parameters():
                weight.data.normal_(std=0.5)  # else every word is as likely as any other
            folders[family] = tmp_path_factory.mktemp(family)
            model.save_pretrained(folders[family])
            processor.save_pretrained(folders[family])
        return folders[family]

    return folder_of
