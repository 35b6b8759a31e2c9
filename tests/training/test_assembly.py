import io

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_gru_captioner.data import View


def test_labels_reward_captions_with_cached_regions_as_without(make_assembly, dataset_folder, checkpoint):
    path = dataset_folder / "data" / "train-00000-of-00001.parquet"
    labels = [["dog"], None, [], ["dog"], ["child"], ["dog"]]
    Dataset.from_parquet(str(path)).add_column("labels", labels).to_parquet(path)
    options = {"objective": "self_critical", "self_critical.label_weight": 0.5, "model": {"checkpoint": checkpoint}}
    batches = []
    for cache in (True, False):
        assembly = make_assembly(dataset_folder, **options, **{"data.cache": cache})
        ((batch,),) = assembly.batches().epoch(1)
        batches.append(batch["image_labels"].nan_to_num(-1).tolist())
    assert sorted(batches[0]) == [[-1, -1], [0, 0], [0, 1], [0, 1], [0, 1], [1, 0]]
    assert batches[0] == batches[1]


@pytest.mark.parametrize("mirror", [True, False])
def test_nothing_is_mirrored_if_the_options_say_so(make_assembly, dataset_folder, mirror):
    assembly = make_assembly(dataset_folder, **{"data.mirror": mirror, "data.crops": 2})
    crops = [View(crop=1, may_mirror=mirror), View(crop=2, may_mirror=mirror)]
    assert assembly.views == [View(), *([View(mirror=True)] if mirror else []), *crops]
    uncached = make_assembly(dataset_folder, **{"data.mirror": mirror, "data.cache": False})
    assert uncached._training_rows(uncached.training_sets[0]).mirror is mirror


def save_jpegs(folder, size: int) -> None:
    """Noise as JPEGs of high quality, which would change if they were encoded again."""
    (folder / "data").mkdir(parents=True)
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    rows = {"image": [], "captions": [["a dog runs"]] * size}
    for seed in range(size):
        encoded = io.BytesIO()
        noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(encoded, "JPEG", quality=95)
        rows["image"].append({"bytes": encoded.getvalue(), "path": None})
    for split in ("train", "validation"):
        Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def test_validation_images_of_a_stream_are_those_of_the_files(make_assembly, tmp_path):
    save_jpegs(tmp_path / "jpegs", 3)
    sets = []
    for streaming in (True, False):
        options = {"data.streaming": streaming, "data.steps_per_epoch": 1, "validation.max_images": 2}
        (rows,) = make_assembly(tmp_path / "jpegs", **options).validation_sets.values()
        sets.append([np.asarray(image) for image in rows["image"]])
    assert [len(images) for images in sets] == [2, 2]
    np.testing.assert_array_equal(*sets)


def test_of_a_stream_only_the_first_images_are_learned(make_assembly, make_dataset, tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, size in (("train", 8), ("validation", 1)):
        for shard in range(2):
            rows = make_dataset(size).select_columns(["image", "captions"])
            rows = rows.add_column("image_id", [f"{shard}-{number}" for number in range(size)])
            rows.to_parquet(tmp_path / "set" / "data" / f"{split}-0000{shard}-of-00002.parquet")
    streaming = {"data.streaming": True, "data.steps_per_epoch": 9, "data.shuffle_block": 2, "data.max_images": 3}
    assembly = make_assembly(tmp_path / "set", **streaming, **{"optimization.images_per_step": 1})
    assert len(assembly.known_captions) == 3
    batches = assembly.batches()
    batches.collate = lambda rows: rows[0]["image_id"]

    def learned(epoch, first_step=0):
        return [image_id for (image_id,) in batches.epoch(epoch, first_step)]

    images = learned(1)
    for start in (0, 3, 6):  # each pass
        assert sorted(images[start : start + 3]) == ["0-0", "0-1", "0-2"]
    state, following = batches.state_dict(), learned(2)
    batches.load_state_dict(state)
    assert learned(2) == following
    share = assembly._training_stream(next(iter(assembly.sources.values())), rank=1, world_size=2, seed=0)
    assert [row["image_id"] for row in share] == ["1-0"]
