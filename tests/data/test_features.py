import copy
import io
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from hf_gru_captioner.data import CaptionedImages, CaptionedRegions, RegionCache, View
from hf_gru_captioner.data import features as features_module
from hf_gru_captioner.data.features import carried_columns
from hf_gru_captioner.model.image_loading_gru_captioner import load_image

SETTINGS = {"side": 96}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(features_module, "IMAGES_PER_SHARD", 2)


@pytest.fixture
def make_cache(model, processor, tmp_path, small_shards):
    """Makes a cache of shards of two images; counts the images that its encoder sees in `calls`."""
    calls = []
    model.encoder.vision.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))

    def make(settings=SETTINGS, encoder=model.encoder.vision, config=model.config.encoder_config, **kwargs):
        cache = RegionCache(
            tmp_path / "cache",
            encoder,
            config,
            lambda images: processor(images=images).pixel_values,
            settings,
            **kwargs,
        )
        assert cache.region_shape == (9, 96)  # the call of the encoder that finds it is not counted
        calls.clear()
        return cache

    make.calls, make.folder = calls, tmp_path / "cache"
    return make


def all_of(regions) -> np.ndarray:
    return torch.stack([regions[index] for index in range(len(regions))]).float().numpy()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_cached_regions_are_the_encoders(make_cache, model, processor, make_dataset, precision):
    dataset = make_dataset(3)
    images = list(dataset["image"])
    with torch.no_grad():
        expected = model.encoder.vision(processor(images=images).pixel_values).numpy()
        mirrored = model.encoder.vision(processor(images=[ImageOps.mirror(each) for each in images]).pixel_values)
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2}[precision]
    for _ in range(2):
        regions = make_cache(precision=precision).regions(dataset)
        assert regions[0].dtype == getattr(torch, precision)
        np.testing.assert_allclose(all_of(regions), expected, atol=tolerance, rtol=tolerance)
    regions = make_cache(precision=precision).regions(dataset, View(mirror=True))
    np.testing.assert_allclose(all_of(regions), mirrored.numpy(), atol=tolerance, rtol=tolerance)
    assert np.abs(mirrored.numpy() - expected).max() > 10 * tolerance


def test_the_encoder_runs_only_for_what_is_not_cached(make_cache, make_dataset):
    cache = make_cache()
    cache.regions(make_dataset(5))
    assert make_cache.calls == [2, 2, 1]
    cache.regions(make_dataset(5))
    make_cache().regions(make_dataset(5))
    assert make_cache.calls == []


def test_the_key_covers_weights_settings_precision_view_images_and_their_order(make_cache, make_dataset, model):
    dataset = make_dataset(3)
    other_config = copy.deepcopy(model.config.encoder_config)
    other_config.do_pooling = True
    caches = [
        make_cache(),
        make_cache(settings={"side": 128}),
        make_cache(precision="bfloat16"),
        make_cache(config=other_config),
    ]
    directories = {cache.directory(dataset, View()) for cache in caches}
    directories |= {caches[0].directory(dataset, view) for view in (View(mirror=True), View(crop=1), View(crop=2))}
    directories |= {caches[0].directory(dataset.select(order), View()) for order in ([0, 2, 1], [0, 1])}
    with torch.no_grad():
        next(model.encoder.vision.parameters()).mul_(1.01)
    directories.add(make_cache().directory(dataset, View()))
    assert len(directories) == 10


def test_an_encoder_stored_in_half_precision_under_another_name_finds_the_cache(make_cache, make_dataset, model):
    rounded = copy.deepcopy(model.encoder.vision).half().float()
    config = copy.deepcopy(model.config.encoder_config)
    config._name_or_path, config.dtype = "elsewhere", torch.float16
    dataset = make_dataset(3)
    settings = {"side": 96, "auto_map": {"AutoProcessor": "elsewhere"}}
    assert make_cache(settings, rounded, config).directory(dataset, View()) == make_cache().directory(dataset, View())


def test_a_killed_run_goes_on_where_it_stopped(make_cache, make_dataset):
    def die(module, inputs, output):
        if len(make_cache.calls) == 2:
            raise KeyboardInterrupt

    cache, dataset = make_cache(), make_dataset(5)
    hook = cache.encoder.register_forward_hook(die)
    with pytest.raises(KeyboardInterrupt):
        cache.regions(dataset)
    hook.remove()
    assert sorted(path.name for path in cache.directory(dataset, View()).iterdir()) == ["cache.json", "shard-00000.bin"]
    assert cache.missing_bytes(dataset) == 3 * 9 * 96 * 2
    make_cache.calls.clear()
    regions = cache.regions(dataset)
    assert make_cache.calls == [2, 1]
    expected = all_of(make_cache(settings={"side": "of its own"}).regions(dataset))
    np.testing.assert_array_equal(all_of(regions), expected)


def test_a_damaged_shard_is_named_and_written_again(make_cache, make_dataset, caplog):
    cache, dataset = make_cache(), make_dataset(5)
    before = all_of(cache.regions(dataset))
    torn = cache.directory(dataset, View()) / "shard-00001.bin"
    torn.write_bytes(torn.read_bytes()[:-7])
    make_cache.calls.clear()
    after = all_of(cache.regions(dataset))
    assert "shard-00001.bin is damaged (3449 of 3456 bytes)" in caplog.text
    assert make_cache.calls == [2]
    np.testing.assert_array_equal(after, before)


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(make_cache, make_dataset):
    cache, dataset = make_cache(), make_dataset(5)
    cache.regions(dataset)
    directory = cache.directory(dataset, View())
    old, new = directory / "shard-00001.bin.there.7.partial", directory / "shard-00001.bin.there.8.partial"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    an_hour_ago = time.time() - 3700
    os.utime(old, (an_hour_ago, an_hour_ago))
    cache.regions(dataset)
    assert (old.exists(), new.exists()) == (False, True)


def test_processes_share_the_work_without_talking(make_cache, make_dataset):
    """The second of two starts in the middle; the first then skips that part."""
    cache, dataset = make_cache(), make_dataset(8)
    directory = cache.directory(dataset, View())
    order = []
    cache.encoder.register_forward_hook(lambda *_: order.append(len(list(directory.glob("shard-*")))))
    written = []
    write = features_module._write

    def spy(path, content):
        write(path, content)
        written.append(path.name)
        if len(written) == 4:  # cache.json and three shards of the second process
            cache.regions(dataset, process=0, processes=2)

    features_module._write, regions = spy, None
    try:
        regions = cache.regions(dataset, process=1, processes=2)
    finally:
        features_module._write = write
    shards = [name for name in written if name.startswith("shard")]
    assert shards == ["shard-00002.bin", "shard-00003.bin", "shard-00000.bin", "shard-00001.bin"]
    assert len(regions) == 8


def test_a_full_disk_is_noticed_before_writing(make_cache, make_dataset, monkeypatch):
    cache = make_cache()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(OSError, match=r"the feature cache needs 0\.0 GB, .* has 0\.0 GB free: make room"):
        cache.regions(make_dataset(3))
    assert make_cache.calls == []


def test_regions_too_large_for_half_precision_are_refused(make_cache, make_dataset):
    cache = make_cache()
    cache.encoder.register_forward_hook(lambda module, inputs, output: output + 1e6)
    with pytest.raises(ValueError, match=r"exceeds the range of .*: set data\.cache_precision to bfloat16"):
        cache.regions(make_dataset(3))
    wide = make_cache(precision="bfloat16")
    assert wide.regions(make_dataset(3))[2].float().mean() == pytest.approx(1e6, rel=0.01)


def test_writing_into_a_row_does_not_change_the_cache(make_cache, make_dataset):
    cache, dataset = make_cache(), make_dataset(3)
    cache.regions(dataset)[0].fill_(7)
    assert not (cache.regions(dataset)[0] == 7).any()
    with pytest.raises(IndexError):
        cache.regions(dataset)[3]


def test_reading_regions_takes_no_memory(tmp_path):
    """Mapped from disk: 400 MB of regions open without the process growing by as much."""
    code = f"""
import resource
from pathlib import Path
from hf_gru_captioner.data.features import Regions, IMAGES_PER_SHARD
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
paths = [Path({str(tmp_path)!r}) / str(number) for number in range(4)]
for path in paths:
    with path.open("wb") as file:
        file.truncate(IMAGES_PER_SHARD * 400 * 512 * 2)
regions = Regions(paths, (4 * IMAGES_PER_SHARD, 400, 512), torch.float16)
assert regions[1000].shape == (400, 512)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 50  # MiB


def test_the_cache_says_what_it_was_made_of(make_cache, make_dataset):
    cache, dataset = make_cache(), make_dataset(3)
    cache.regions(dataset, View(crop=2))
    made_of = json.loads((cache.directory(dataset, View(crop=2)) / "cache.json").read_text())
    assert made_of == {"shape": [3, 9, 96], "dtype": "torch.float16", "view": "crop 2", "settings": '{"side": 96}'}


def test_a_crop_is_a_part_of_the_image_and_always_the_same(photo):
    sizes = set()
    for index in range(20):
        crop = View(crop=1)(photo, index)
        assert crop.tobytes() == View(crop=1)(photo, index).tobytes()
        share = crop.width * crop.height / (photo.width * photo.height)
        assert 0.55 < share <= 1.0
        assert abs(crop.width / crop.height - photo.width / photo.height) < 0.1
        pixels = {crop.tobytes(), ImageOps.mirror(crop).tobytes()}
        width, height = crop.size
        boxes = [(x, y, x + width, y + height) for x in range(41 - width) for y in range(31 - height)]
        assert any(photo.crop(box).tobytes() in pixels for box in boxes)
        sizes.add(crop.size)
    assert len(sizes) > 5
    assert len({View(crop=number)(photo, 0).tobytes() for number in range(1, 9)}) == 8


def test_each_epoch_draws_one_of_the_views_by_seed_epoch_and_image():
    views = [[torch.full((4, 3), float(value))] * 20 for value in range(2)]
    rows = CaptionedRegions(views, [["a dog"], ["a cat", "two cats"]] * 10)
    assert len(rows) == 20
    assert rows[1]["captions"] == ["a cat", "two cats"]

    def drawn(epoch, seed=0):
        rows.epoch, rows.seed = epoch, seed
        return [int(rows[index]["regions"][0, 0]) for index in range(20)]

    assert set(drawn(1)) == {0, 1}
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1) != drawn(1, seed=1)


def test_images_are_cropped_anew_each_epoch_and_left_whole_without_augmentation(make_dataset):
    rows = CaptionedImages(make_dataset(2))
    pixels = []
    for rows.epoch in (1, 2, 1):
        pixels.append(rows[0]["image"].tobytes())
    assert pixels[0] == pixels[2] != pixels[1]
    whole = CaptionedImages(make_dataset(2), augment=False)
    assert whole[1]["image"].tobytes() == make_dataset(2)[1]["image"].tobytes()
    assert whole[1]["captions"] == list(make_dataset(2)[1]["captions"])


def test_colors_change_anew_each_epoch_within_the_share(make_dataset):
    dataset = make_dataset(2)
    plain, jittered = CaptionedImages(dataset), CaptionedImages(dataset, color_jitter=0.3)
    looks = []
    for plain.epoch in (1, 2, 1):
        jittered.epoch = plain.epoch
        ratio = np.asarray(jittered[0]["image"]).mean() / np.asarray(plain[0]["image"]).mean()
        assert 0.65 < ratio < 1.35
        looks.append(jittered[0]["image"].tobytes())
        assert looks[-1] != plain[0]["image"].tobytes()
    assert looks[0] == looks[2] != looks[1]


@pytest.fixture
def striped():
    """Images with a white bar on the left."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :20] = 255
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    return Dataset.from_dict({"image": [pixels] * 20, "captions": [["a bar on the left"]] * 20}, features=features)


def is_mirrored(image) -> bool:
    pixels = np.asarray(image)
    return pixels[:, 0].mean() < pixels[:, -1].mean()


@pytest.mark.parametrize("mirror", [True, False])
def test_crops_are_mirrored_only_if_they_may_be(striped, mirror):
    crops = [View(crop=1, may_mirror=mirror)(striped[index]["image"], index) for index in range(20)]
    rows = CaptionedImages(striped, mirror=mirror)
    for images in (crops, [rows[index]["image"] for index in range(20)]):
        assert any(map(is_mirrored, images)) is mirror
        assert not all(map(is_mirrored, images))
    with_mirror = View(crop=1)(striped[0]["image"], 0)
    assert crops[0].tobytes() in {with_mirror.tobytes(), ImageOps.mirror(with_mirror).tobytes()}  # the same part


def test_caches_of_crops_that_may_not_be_mirrored_are_their_own():
    assert [str(view) for view in (View(), View(mirror=True), View(crop=1), View(crop=1, may_mirror=False))] == [
        "whole",
        "whole, mirrored",
        "crop 1",
        "crop 1, never mirrored",
    ]
    assert str(View(may_mirror=False)) == "whole"


def test_weights_and_labels_are_carried_with_regions_as_with_images(make_dataset):
    dataset = make_dataset(3).add_column("labels", [["dog"], None, []]).add_column("caption_weights", [[1.0, 0.5]] * 3)
    regions = CaptionedRegions([torch.zeros(3, 4, 5)], list(dataset["captions"]), **carried_columns(dataset))
    images = CaptionedImages(dataset)
    for index, labels in enumerate([["dog"], None, []]):
        for row in (regions[index], images[index]):
            assert (row["labels"], row["caption_weights"]) == (labels, [1.0, 0.5])
    bare = CaptionedRegions([torch.zeros(3, 4, 5)], list(dataset["captions"]), **carried_columns(make_dataset(3)))
    assert set(bare[0]) == {"regions", "captions"}


@pytest.mark.parametrize("stored", ["transparent", "16-bit"])
def test_jittered_colors_are_those_of_the_image_as_it_is_captioned(stored):
    image = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    if stored == "16-bit":
        image = Image.fromarray(np.full((20, 30), 20_000, np.uint16))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    rows = {"image": [{"bytes": encoded.getvalue(), "path": None}], "captions": [["nothing"]]}
    dataset = Dataset.from_dict(rows, features=features)
    plain, jittered = (CaptionedImages(dataset, color_jitter=jitter)[0]["image"] for jitter in (0.0, 1e-6))
    np.testing.assert_allclose(np.asarray(jittered, int), np.asarray(load_image(plain), int), atol=1)
