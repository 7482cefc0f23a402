"""Files and folders that are there whole or not at all."""

import pytest

from decoder.utils.errors import UserError
from decoder.utils.files import refuse_file, remove_unfinished, whole_file, whole_folder, write_text


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_cannot_be_made_in_place_of_a_file_nor_in_one(tmp_path):
    file = tmp_path / "file"
    file.touch()
    refuse_file("out", tmp_path / "new" / "folder")
    with pytest.raises(UserError, match=f"^out={file}: it is a file; give a folder$"):
        refuse_file("out", file)
    with pytest.raises(UserError, match=f"^out={file}/a/b: {file} is a file; give a folder$"):
        refuse_file("out", file / "a" / "b")


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path):
    write_text(tmp_path / "a" / "text", "Mañana")
    assert (tmp_path / "a" / "text").read_bytes() == "Mañana".encode()
    with whole_file(tmp_path / "a" / "text") as unfinished:
        unfinished.write_text("new")
        assert (tmp_path / "a" / "text").read_text(encoding="utf-8") == "Mañana"
    assert (tmp_path / "a" / "text").read_text() == "new" and names(tmp_path / "a") == ["text"]


def test_what_fails_leaves_the_old_one_alone(tmp_path):
    write_text(tmp_path / "text", "old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "text") as unfinished:
        unfinished.write_text("half")
        raise ZeroDivisionError
    (tmp_path / "folder").mkdir()
    write_text(tmp_path / "folder" / "text", "old")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder") as unfinished:
        (unfinished / "half").touch()
        raise ZeroDivisionError
    assert names(tmp_path) == ["folder", "text"] and (tmp_path / "text").read_text() == "old" and names(tmp_path / "folder") == ["text"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with whole_folder(tmp_path / "folder") as unfinished:
        (unfinished / "new").touch()
        assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["new"]


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path):
    for path in (tmp_path / ".decoder.0123456789ab", tmp_path / ".config"):
        path.mkdir()
    (tmp_path / ".result.json.0123456789ab").touch()
    (tmp_path / ".note.txt").touch()
    remove_unfinished(tmp_path, "result.json")
    assert names(tmp_path) == [".config", ".decoder.0123456789ab", ".note.txt"]
    remove_unfinished(tmp_path)
    assert names(tmp_path) == [".config", ".note.txt"]
