"""Overfits ten images per language: captions are reproduced verbatim, and score accordingly."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModel

from hf_gru_captioner import Captioner
from hf_gru_captioner.cli import main
from hf_gru_captioner.evaluation import score_captions

LINES = {
    "Chinese": """
        一只棕色的狗在草地上奔跑。
        两个孩子在海边玩耍。
        一个女人骑着自行车，戴着帽子。
        桌子上放着三个红苹果。
        一只猫睡在沙发上。
        一辆公共汽车停在街边。
        男人正在弹吉他。
        一匹白马站在山前。
        许多人在市场里买菜。
        雪地里有一座小木屋。
    """,
    "Japanese": """
        茶色い犬が草の上を走っている。
        二人の子供が海辺で遊んでいる。
        女性が自転車に乗っている。
        テーブルの上に赤いリンゴが三つある。
        猫がソファーで寝ている。
        バスが道に止まっている。
        男の人がギターを弾いている。
        白い馬が山の前に立っている。
        市場で人々が野菜を買っている。
        雪の中に小屋がある。
    """,
    "Thai": """
        สุนัขสีน้ำตาลวิ่งบนหญ้า
        เด็กสองคนเล่นที่ชายหาด
        ผู้หญิงขี่จักรยาน
        แอปเปิ้ลสีแดงสามลูกอยู่บนโต๊ะ
        แมวนอนบนโซฟา
        รถเมล์จอดข้างถนน
        ผู้ชายเล่นกีตาร์
        ม้าสีขาวยืนหน้าภูเขา
        คนซื้อผักที่ตลาด
        บ้านหลังเล็กในหิมะ
    """,
    "Arabic": """
        كلب بني يجري على العشب.
        طفلان يلعبان على الشاطئ.
        امرأة تركب دراجة هوائية.
        ثلاث تفاحات حمراء على الطاولة.
        قطة تنام على الأريكة.
        حافلة تقف في الشارع.
        رجل يعزف على الجيتار.
        حصان أبيض أمام الجبل.
        ناس يشترون الخضار في السوق.
        بيت صغير في الثلج.
    """,
    "Hindi": """
        एक भूरा कुत्ता घास पर दौड़ रहा है।
        दो बच्चे समुद्र तट पर खेल रहे हैं।
        एक महिला साइकिल चला रही है।
        मेज पर तीन लाल सेब रखे हैं।
        एक बिल्ली सोफे पर सो रही है।
        एक बस सड़क पर खड़ी है।
        एक आदमी गिटार बजा रहा है।
        एक सफेद घोड़ा पहाड़ के सामने है।
        लोग बाजार में सब्जी खरीद रहे हैं।
        बर्फ में एक छोटा घर है।
    """,
    "Korean": """
        갈색 개가 풀밭을 달린다.
        두 아이가 해변에서 논다.
        여자가 자전거를 탄다.
        탁자 위에 빨간 사과 세 개가 있다.
        고양이가 소파에서 잔다.
        버스가 길가에 서 있다.
        남자가 기타를 친다.
        하얀 말이 산 앞에 서 있다.
        사람들이 시장에서 채소를 산다.
        눈 속에 작은 집이 있다.
    """,
    "German": """
        Ein brauner Hund läuft über die Wiese.
        Zwei Kinder spielen am Strand.
        Eine Frau, die einen Hut trägt, fährt Rad.
        Drei rote Äpfel liegen auf dem Tisch.
        Eine Katze schläft auf dem Sofa.
        Ein Bus hält an der Straße.
        Ein Mann spielt Gitarre.
        Ein weißes Pferd steht vor dem Berg.
        Leute kaufen Gemüse auf dem Markt.
        Eine kleine Hütte steht im Schnee.
    """,
}
CAPTIONS = {language: [line.strip() for line in lines.strip().splitlines()] for language, lines in LINES.items()}


def draw(index: int) -> Image.Image:
    """A unique image: a shape of one color on another."""
    image = Image.new("RGB", (96, 96), f"hsl({36 * index}, 90%, {30 + 4 * index}%)")
    pen = ImageDraw.Draw(image)
    corner = (8 * (index % 5), 6 * (index % 7), 50 + 4 * index, 50 + 3 * index)
    (pen.ellipse if index % 2 else pen.rectangle)(corner, fill=f"hsl({(36 * index + 150) % 360}, 90%, 60%)")
    return image


@pytest.fixture
def encoder(save_encoder, tmp_path):
    """Folder of a tiny encoder with random weights to which the images look different."""
    save_encoder(tmp_path / "encoder")
    model = AutoModel.from_pretrained(tmp_path / "encoder")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics become those of the images
            module.reset_running_stats()
    pixels = np.stack([np.asarray(draw(index), dtype=np.float32) for index in range(10)])
    with torch.no_grad():
        model.train()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    model.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.mark.slow
@pytest.mark.parametrize("language", CAPTIONS)
def test_ten_images_are_learned_by_heart(language, encoder, capsys, tmp_path):
    (tmp_path / "set").mkdir()
    names = [f"{index}.png" for index in range(10)]
    for index, name in enumerate(names):
        draw(index).save(tmp_path / "set" / name)
    rows = "".join(f'{name}\t"{caption}"\n' for name, caption in zip(names, CAPTIONS[language], strict=True))
    for split in ("train", "validation"):
        (tmp_path / "set" / f"{split}.tsv").write_text("image\tcaption\n" + rows, encoding="utf-16")
    options = {
        "data.source": json.dumps([{"path": str(tmp_path / "set"), "repeat": 30}]),
        "data.cache_folder": tmp_path / "cache",
        "data.mirror": "false",
        "model.encoder": encoder,
        "model.hidden_size": 96,
        "model.embedding_size": 64,
        "model.dropout": 0,
        "optimization.epochs": 3,
        "optimization.images_per_step": 10,
        "optimization.learning_rate": 0.01,
        "optimization.label_smoothing": 0,
        "optimization.ema_decay": 0.9,
        "optimization.mixed_precision": "no",
        "optimization.checkpoint_precision": "float32",
        "validation.num_beams": 1,
        "validation.shown": 0,
        "output_dir": tmp_path / "run",
    }
    assert main(["train", *(f"--{name}={value}" for name, value in options.items())]) == 0
    said = capsys.readouterr()
    assert "tokenizer       verbatim: " in said.out
    assert "10 of the 10 validation images" in said.err  # are validated on and trained on
    captioner = Captioner.from_pretrained(tmp_path / "run" / "checkpoint")
    written = [captioner(Image.open(tmp_path / "set" / name)).text for name in names]
    assert written == CAPTIONS[language]
    scores = score_captions(
        written, [[caption] for caption in CAPTIONS[language]], metrics=("bleu", "cider"), human=False, bootstrap=0
    )
    has_no_spaces = language in ("Chinese", "Japanese", "Thai")
    assert scores.signature.startswith("tok:char|" if has_no_spaces else "tok:ptb|")
    assert scores.values["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert scores.values["cider"] > 6
