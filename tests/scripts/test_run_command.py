"""`skipgym run` on texts and videos: answers, what was read, and only frames that can be looked at are decoded."""

import pytest
import torch
from PIL import Image

from skipgym.agents.controller import Controller
from skipgym.agents.policy import StaticPolicy
from skipgym.data import load
from skipgym.data.video import Video
from skipgym.envs import make_task
from skipgym.scripts.cli import main

from ..videos import save_video


@pytest.fixture
def of_texts(random_backbone, tmp_path):
    """Return where a controller lies that leaves out a word, reads two and answers."""
    task = make_task("time-skip", random_backbone("words-w8", reader="steps"), skip="1")
    option = {move: number for number, move in enumerate(task.moves, 1)}
    leave, read = (
        next(n for move, n in option.items() if (move.how, move.ahead) == (how, 1)) for how in ("leave", "read")
    )
    way = (leave, read, read, *(0,) * (task.horizon - 3))
    return Controller(task, StaticPolicy(way, 1)).save(tmp_path / "texts")


@pytest.fixture
def of_clips(random_backbone, tmp_path):
    """Return a function that saves a controller of a task on clips."""

    def save(name: str, way: tuple[int, ...], reader: str):
        task = make_task(name, random_backbone(reader=reader))
        return Controller(task, StaticPolicy((*way, *(0,) * (task.horizon - len(way))), 1)).save(tmp_path / name)

    return save


def test_text_is_answered_with_the_words_that_were_read(of_texts, tmp_path, capsys):
    for name, text in (("one", "a b c d e"), ("two", "h zebra g")):
        (tmp_path / f"{name}.txt").write_text(text)
    assert main(["run", str(of_texts), str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith(f"{tmp_path / 'one.txt'}: ")
    assert one.endswith(": b c")
    assert len(two.rpartition(": ")[2].split()) == 2  # a word that is not known, and the last


def test_words_that_were_read_are_drawn(of_texts, tmp_path):
    (tmp_path / "one.txt").write_text("a b c d e")
    picture = tmp_path / "story.png"
    assert main(["run", str(of_texts), str(tmp_path / "one.txt"), "--picture", str(picture)]) == 0
    assert picture.stat().st_size > 0


@pytest.mark.parametrize(("name", "reader", "most"), [("frame-select", "frames", 4), ("time-skip", "steps", 6)])
def test_video_is_answered_from_frames_that_can_be_looked_at(
    name, reader, most, of_clips, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("av")
    asked = []
    frames = Video.frames
    monkeypatch.setattr(
        Video, "frames", lambda self, numbers, **how: (asked.append(list(numbers)), frames(self, numbers, **how))[1]
    )
    paths = [save_video(tmp_path / f"{length}.mp4", length) for length in (50, 1)]
    assert main(["run", str(of_clips(name, (2, 1), reader)), *map(str, paths)]) == 0
    assert [len(numbers) for numbers in asked] == [most, 1]
    assert asked[0][0] == 0
    assert asked[0][-1] == 49
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    if name == "frame-select":
        assert told[0].endswith(f": frame {asked[0][1] + 1}, frame 1")  # of the video, not of what was decoded
        assert told[1].endswith(": frame 1, frame 1")


def test_image_is_answered_with_the_places_that_were_looked_at(random_backbone, tmp_path, capsys):
    task = make_task("patch-crop", random_backbone(), looks=2)
    saved = Controller(task, StaticPolicy((5, 3), 1)).save(tmp_path / "crops")
    Image.new("L", (8, 8), 100).save(tmp_path / "grey.png")
    assert main(["run", str(saved), str(tmp_path / "grey.png")]) == 0
    assert capsys.readouterr().out.endswith(": 8 x 8 at (4, 4), 8 x 8 at (2, 6)\n")  # of two scales the wider


def test_video_is_answered_as_in_a_directory(of_clips, tmp_path, capsys):
    """The frames that are decoded are those that training and evaluation would see."""
    pytest.importorskip("av")
    for name in ("train/nod", "train/shake", "test/nod", "test/shake"):
        for number in range(3):
            save_video(tmp_path / "films" / name / f"{number}.mp4", 50 + number, step=1 + number)
    saved = of_clips("frame-select", (3, 1), "frames")
    controller, clips = Controller.load(saved), load(tmp_path / "films", image_size=8).test.images
    path = tmp_path / "films" / "test" / "nod" / "1.mp4"
    assert main(["run", str(saved), str(path)]) == 0
    assert "executed 2 of 3" in capsys.readouterr().out
    kept = torch.tensor(controller.task.offered(clips.shape[1]))
    video = Video(path)
    frames = video.frames([[round(i * 50 / 31) for i in range(32)][k] for k in kept], image_size=8)
    answers = controller(clips.float().div(255)[1:2].mean(2, keepdim=True)).logits
    again = controller(frames.float().div(255)[None].mean(2, keepdim=True)).logits
    torch.testing.assert_close(answers, again)


def test_strip_of_chosen_frames_is_drawn(of_clips, tmp_path):
    pytest.importorskip("av")
    path, picture = save_video(tmp_path / "a.mp4", 9), tmp_path / "story.png"
    assert main(["run", str(of_clips("frame-select", (2, 1), "frames")), str(path), "--picture", str(picture)]) == 0
    assert picture.stat().st_size > 0


def test_other_files_than_videos_are_refused(of_clips, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    assert main(["run", str(of_clips("frame-select", (2,), "frames")), str(tmp_path / "a.png")]) == 1
    assert "expected videos" in capsys.readouterr().err
