import torch

from hf_gru_captioner.data import CaptionCollator


def test_an_image_and_all_of_its_captions_travel_together(processor, model, make_photo):
    rows = [
        {"image": make_photo(0), "captions": ["A brown dog runs", "Two children"]},
        {"image": make_photo(1), "captions": ["A girl in a pink T-shirt jumps ."]},
    ]
    batch = CaptionCollator(processor)(rows)
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    assert batch["image_index"].tolist() == [0, 0, 1]
    assert processor.batch_decode(batch["labels"]) == [
        "a brown dog runs",
        "two children",
        "a girl in a pink t-shirt jumps",
    ]
    assert model(**batch).loss.isfinite()


def test_captions_have_weights_where_one_is_not_1(processor, model, make_photo):
    rows = [
        {"image": make_photo(0), "captions": ["A brown dog runs", "Two children"], "caption_weights": [1.0, 0.5]},
        {"image": make_photo(1), "captions": ["A girl"]},
        {"image": make_photo(2), "captions": ["A girl"], "caption_weights": None},
    ]
    batch = CaptionCollator(processor)(rows)
    assert batch["caption_weights"].tolist() == [1.0, 0.5, 1.0, 1.0]
    assert model(**batch).loss.isfinite()
    rows[0]["caption_weights"] = [1.0, 1.0]
    assert "caption_weights" not in CaptionCollator(processor)(rows)


def test_labels_of_images_become_columns(processor, make_photo):
    labels = (["horse", "horse", "unheard of"], [], None, ["dog", "horse"])
    rows = [{"image": make_photo(0), "captions": ["A girl"], "labels": each} for each in labels]
    found = CaptionCollator(processor, label_names=["dog", "horse"])(rows)["image_labels"]
    assert found[[0, 1, 3]].tolist() == [[0, 1], [0, 0], [1, 1]]
    assert found[2].isnan().all()
    assert "image_labels" not in CaptionCollator(processor)(rows)


def test_regions_go_through_the_other_door_with_the_same_loss(processor, model, make_photo):
    captions = ["A brown dog runs", "Two children"]
    photos = [make_photo(seed) for seed in range(2)]
    from_images = CaptionCollator(processor)([{"image": photo, "captions": captions} for photo in photos])
    with torch.no_grad():
        regions = model.encoder.vision(from_images["pixel_values"])
        from_regions = CaptionCollator(processor)([{"regions": each, "captions": captions} for each in regions])
        assert "pixel_values" not in from_regions
        torch.testing.assert_close(model(**from_regions).loss, model(**from_images).loss)
