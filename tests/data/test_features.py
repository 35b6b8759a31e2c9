import shutil

import numpy as np
import pytest
import torch
from PIL import ImageOps

from hf_gru_captioner.data import CaptionedRegions, View, cache_regions
from hf_gru_captioner.data import features as features_module


@pytest.fixture
def cache(model, processor, make_dataset, tmp_path):
    """Caches the regions of three photos; counts the encoder's calls in `cache.calls`."""
    calls = []
    encoder = model.encoder.vision
    encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))

    def cache(dataset=None, settings="96 pixels", **kwargs):
        dataset = dataset or make_dataset(3)
        return cache_regions(
            dataset,
            encoder,
            lambda images: processor(images=images).pixel_values,
            settings,
            tmp_path / "cache",
            **kwargs,
        )

    cache.calls, cache.encoder, cache.folder = calls, encoder, tmp_path / "cache"
    return cache


def test_cached_regions_are_the_encoders(cache, model, processor, make_dataset):
    images = make_dataset(3)["image"]
    with torch.no_grad():
        expected = model.encoder.vision(processor(images=list(images)).pixel_values)
        mirrored = model.encoder.vision(processor(images=[ImageOps.mirror(image) for image in images]).pixel_values)
    for regions in (cache(batch_size=2), cache(batch_size=2)):
        assert regions.dtype == np.float16
        np.testing.assert_allclose(regions, expected.numpy(), atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(cache(view=View(mirror=True)), mirrored.numpy(), atol=2e-3, rtol=2e-3)
    assert (mirrored - expected).abs().max() > 1e-2


def test_the_encoder_runs_only_for_what_is_not_cached(cache):
    cache(batch_size=2)
    assert cache.calls == [2, 1]
    cache(batch_size=3)
    assert cache.calls == [2, 1]


def test_the_key_covers_weights_settings_and_images(cache, make_dataset):
    cache()
    cache(settings="128 pixels")
    cache(dataset=make_dataset(3).select([0, 2, 1]))
    with torch.no_grad():
        next(cache.encoder.parameters()).add_(0.01)
    cache()
    assert len(cache.calls) == 4
    assert len(list(cache.folder.iterdir())) == 4


def test_views_are_told_apart(cache):
    views = [View(), View(mirror=True), View(crop=1), View(crop=2)]
    regions = [np.asarray(cache(view=view)) for view in views]
    assert len(cache.calls) == len(list(cache.folder.iterdir())) == 4
    for index, each in enumerate(regions):
        assert all(np.abs(each - other).max() > 1e-2 for other in regions[:index])


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


def test_a_killed_run_leaves_no_cache_behind(cache, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(features_module, "_check_free_disk", killed)
    with pytest.raises(KeyboardInterrupt):
        cache()
    assert [path.suffix for path in cache.folder.iterdir()] == [".partial"]
    monkeypatch.undo()
    cache()
    assert [path.suffix for path in cache.folder.iterdir()] == [""]
    assert cache.calls == [3, 3]  # once in the killed run


def test_a_full_disk_is_noticed_before_writing(cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(OSError, match=r"the feature cache needs 0\.0 GB, .* has 0\.0 GB free"):
        cache()


def test_regions_too_large_for_half_precision_are_refused(cache):
    cache.encoder.register_forward_hook(lambda module, inputs, output: output + 1e6)
    with pytest.raises(ValueError, match="it can't be cached"):
        cache()


def test_rows_draw_one_of_the_views():
    views = [np.full((2, 4, 3), value, np.float16) for value in (0, 1)]
    rows = CaptionedRegions(views, [["a dog"], ["a cat", "two cats"]])
    assert len(rows) == 2
    assert rows[1]["captions"] == ["a cat", "two cats"]
    torch.manual_seed(0)
    drawn = {float(rows[0]["regions"][0, 0]) for _ in range(20)}
    assert drawn == {0.0, 1.0}
    assert {float(CaptionedRegions(views[:1], [["a dog"]])[0]["regions"].max()) for _ in range(20)} == {0.0}


def test_writing_into_a_row_does_not_change_the_cache(cache):
    cache()[0] = 7
    assert not (cache()[0] == 7).any()
