"""Captions in metadata, read back through Exiv2; the pictures and everything else are unchanged."""

import io
import os

import numpy as np
import pyexiv2
import pytest
from PIL import Image

from hf_gru_captioner.library.metadata import NO_TEXTS, Metadata, Texts
from hf_gru_captioner.untrusted_images import ADDRESSES

CAPTION = "a dog — ß"
DEFAULT = 'lang="x-default"'
DIGIKAM = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:digiKam="http://www.digikam.org/ns/1.0/" xmp:Rating="4">
<digiKam:TagsList><rdf:Seq><rdf:li>Family/Anna</rdf:li></rdf:Seq></digiKam:TagsList>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def read(path) -> tuple[dict, dict, dict]:
    """XMP, IPTC and EXIF."""
    with pyexiv2.ImageData(path.read_bytes()) as image:
        return image.read_xmp(), image.read_iptc(), image.read_exif()


def fields(changes) -> list[str]:
    return [change.field for change in changes]


@pytest.fixture
def jpeg(make_photo, tmp_path):
    """A progressive JPEG as from phones: EXIF, a color profile, a reference to a second picture, trailing data."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    stream = io.BytesIO()
    photo = make_photo(0, 80, 60)
    photo.save(stream, "MPO", save_all=True, append_images=[photo.rotate(180)], exif=exif, quality=92)
    content = stream.getvalue()
    unknown = b"\xff\xeb\x00\x0bJPHDRtest"
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:20] + unknown + content[20:] + b"the film of a motion photo")
    return path


def test_a_caption_is_where_programs_look_for_it(jpeg):
    assert fields(Metadata(in_file=True).keep(str(jpeg), [CAPTION])) == [
        "description",
        "IPTC caption",
        "alternative text",
    ]
    xmp, iptc, exif = read(jpeg)
    assert xmp == {"Xmp.dc.description": {DEFAULT: CAPTION}, "Xmp.iptc.AltTextAccessibility": {DEFAULT: CAPTION}}
    assert iptc == {"Iptc.Envelope.CharacterSet": "\x1b%G", "Iptc.Application2.Caption": CAPTION}
    assert (exif["Exif.Image.Make"], exif["Exif.Image.Orientation"]) == ("Maker", "6")
    assert b"Iptc4xmpCore:AltTextAccessibility" in jpeg.read_bytes()


def test_all_bytes_of_the_picture_stay(jpeg):
    before = jpeg.read_bytes()
    with Image.open(io.BytesIO(before)) as image:
        image.seek(1)
        second = np.asarray(image)
    Metadata(in_file=True).keep(str(jpeg), [CAPTION])
    after = jpeg.read_bytes()
    begin = before.index(b"MPF\0")  # from which the places of other pictures count
    assert after[after.index(b"MPF\0") :] == before[begin:]
    assert b"JPHDRtest" in after
    start = before.index(b"Exif\0\0")
    length = int.from_bytes(before[start - 2 : start], "big") - 2
    assert before[start : start + length] in after  # and the camera's own notes with it
    with Image.open(jpeg) as image:
        image.seek(1)
        assert np.array_equal(np.asarray(image), second)


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "jp2"])
def test_other_formats_hold_captions_too(make_photo, tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    make_photo(1).save(path)
    pixels = np.asarray(Image.open(path))
    Metadata(in_file=True).keep(str(path), [CAPTION])
    xmp, iptc, _ = read(path)
    assert xmp["Xmp.dc.description"] == xmp["Xmp.iptc.AltTextAccessibility"] == {DEFAULT: CAPTION}
    assert iptc.get("Iptc.Application2.Caption") == (None if ending == "webp" else CAPTION)
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_second_run_changes_nothing(jpeg):
    metadata = Metadata(in_file=True)
    assert not metadata.is_taken(str(jpeg))
    metadata.keep(str(jpeg), [CAPTION])
    before = jpeg.read_bytes()
    assert metadata.is_taken(str(jpeg))
    assert metadata.keep(str(jpeg), [CAPTION]) == metadata.keep(str(jpeg), ["another"]) == []
    assert jpeg.read_bytes() == before


def test_texts_of_people_stay_unless_they_are_to_be_replaced(jpeg):
    with pyexiv2.ImageData(jpeg.read_bytes()) as image:
        image.modify_xmp({"Xmp.dc.description": {DEFAULT: "Anna's birthday", 'lang="de"': "Annas Geburtstag"}})
        jpeg.write_bytes(image.get_bytes())
    assert fields(Metadata(in_file=True).keep(str(jpeg), [CAPTION])) == ["alternative text"]
    xmp, iptc, _ = read(jpeg)
    assert xmp["Xmp.dc.description"] == {DEFAULT: "Anna's birthday", 'lang="de"': "Annas Geburtstag"}
    assert iptc == {}  # where another text would contradict hers
    changes = Metadata(in_file=True, overwrite=True).keep(str(jpeg), [CAPTION])
    assert [(change.field, change.before) for change in changes] == [
        ("description", "Anna's birthday"),
        ("IPTC caption", ""),
    ]
    assert read(jpeg)[0]["Xmp.dc.description"] == {DEFAULT: CAPTION, 'lang="de"': "Annas Geburtstag"}


@pytest.mark.parametrize(("text", "is_one"), [("Anna's birthday", True), ("OLYMPUS DIGITAL CAMERA", False)])
def test_a_description_in_exif_is_one_unless_the_camera_wrote_it(make_photo, tmp_path, text, is_one):
    exif = Image.Exif()
    exif[0x010E] = text
    path = tmp_path / "a.jpg"
    make_photo().save(path, exif=exif)
    changed = fields(Metadata(in_file=True).keep(str(path), [CAPTION]))
    assert changed == (["alternative text"] if is_one else ["description", "IPTC caption", "alternative text"])
    assert read(path)[2]["Exif.Image.ImageDescription"] == text


def test_iptc_of_another_encoding_is_left_alone(make_photo, tmp_path):
    path = tmp_path / "a.jpg"
    make_photo().save(path)
    with pyexiv2.ImageData(path.read_bytes()) as image:
        image.modify_iptc({"Iptc.Application2.City": "Köln"}, encoding="latin-1")
        path.write_bytes(image.get_bytes())
    assert fields(Metadata(in_file=True).keep(str(path), [CAPTION])) == ["description", "alternative text"]
    with pyexiv2.ImageData(path.read_bytes()) as image:
        assert image.read_iptc(encoding="latin-1") == {"Iptc.Application2.City": "Köln"}


def test_a_sidecar_has_the_name_of_the_photo_and_keeps_what_others_wrote(jpeg):
    before = jpeg.read_bytes()
    sidecar = jpeg.with_name("a.jpg.xmp")
    sidecar.write_text(DIGIKAM)
    metadata = Metadata(in_sidecar=True)
    assert fields(metadata.keep(str(jpeg), [CAPTION])) == ["description", "alternative text"]
    xmp = read(sidecar)[0]
    assert xmp["Xmp.dc.description"] == xmp["Xmp.iptc.AltTextAccessibility"] == {DEFAULT: CAPTION}
    assert (xmp["Xmp.xmp.Rating"], xmp["Xmp.digiKam.TagsList"]) == ("4", ["Family/Anna"])
    assert metadata.is_taken(str(jpeg))
    assert jpeg.read_bytes() == before


def test_a_text_in_the_photo_is_not_contradicted_by_its_sidecar(jpeg):
    Metadata(in_file=True).keep(str(jpeg), ["Anna's birthday"])
    assert Metadata(in_sidecar=True).keep(str(jpeg), [CAPTION]) == []
    assert not jpeg.with_name("a.jpg.xmp").exists()
    both = Metadata(in_file=True, in_sidecar=True)
    assert fields(both.keep(str(jpeg), ["Anna's birthday"])) == ["description", "alternative text"]  # the same one


def test_a_dry_run_writes_nothing(jpeg):
    before = jpeg.read_bytes()
    changes = Metadata(in_file=True, in_sidecar=True).keep(str(jpeg), [CAPTION], dry_run=True)
    assert [(str(change.file), change.field) for change in changes] == [
        (f"{jpeg}.xmp", "description"),
        (f"{jpeg}.xmp", "alternative text"),
        (str(jpeg), "description"),
        (str(jpeg), "IPTC caption"),
        (str(jpeg), "alternative text"),
    ]
    assert jpeg.read_bytes() == before
    assert list(jpeg.parent.iterdir()) == [jpeg]


def test_a_link_and_the_rights_of_a_photo_stay(jpeg):
    jpeg.chmod(0o640)
    link = jpeg.with_name("link.jpg")
    link.symlink_to(jpeg.name)
    Metadata(in_file=True).keep(str(link), [CAPTION])
    assert link.is_symlink()
    assert os.stat(jpeg).st_mode & 0o777 == 0o640
    assert Metadata(in_file=True).is_taken(str(jpeg))


def test_a_photo_that_would_be_harmed_stays_as_it_is(make_photo, tmp_path):
    """Exiv2 0.28.8 writes four pages of six."""
    path = tmp_path / "scans.tif"
    make_photo(0).save(path, save_all=True, append_images=[make_photo(seed) for seed in range(1, 6)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"scans\.tif: its metadata can't be written .*: use --write xmp"):
        Metadata(in_file=True).keep(str(path), [CAPTION])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert Metadata(in_sidecar=True).keep(str(path), [CAPTION])


def test_metadata_that_would_be_lost_stops_the_writing(jpeg, monkeypatch):
    before = jpeg.read_bytes()
    answers = iter([Texts({"Xmp.xmp.Rating": "4"}, {}, {}), NO_TEXTS])  # before, after
    monkeypatch.setattr("hf_gru_captioner.library.metadata._texts", lambda image: next(answers))
    with pytest.raises(ValueError, match=r"Xmp\.xmp\.Rating would be lost"):
        Metadata(in_file=True).keep(str(jpeg), [CAPTION])
    assert jpeg.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gif", None, r"a file of this format \(image/gif\) can't hold a caption: use --write xmp"),
        ("a.nef", b"raw", "is a camera's raw file, which is not modified: use --write xmp"),
        ("a.jpg", b"no photo", "its metadata can't be written"),
    ],
)
def test_what_cannot_hold_a_caption_is_named(make_photo, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content) if content else make_photo().save(path)
    with pytest.raises(ValueError, match=rf"{path.name}.*{message}"):
        Metadata(in_file=True).keep(str(path), [CAPTION])


def test_a_sidecar_of_something_else_an_address_and_no_file_are_refused(jpeg):
    sidecar = jpeg.with_name("a.jpg.xmp")
    sidecar.write_text("mine")
    with pytest.raises(ValueError, match=r"a\.jpg\.xmp can't be read .*; it is unchanged"):
        Metadata(in_sidecar=True).keep(str(jpeg), [CAPTION])
    assert sidecar.read_text() == "mine"
    with pytest.raises(ValueError, match="is a URL: it has no metadata"):
        Metadata(in_file=True).keep(f"{ADDRESSES[0]}x.org/a.jpg", [CAPTION])
    with pytest.raises(FileNotFoundError, match="no such file"):
        Metadata(in_file=True).keep(str(jpeg.with_name("nowhere.jpg")), [CAPTION])
