from pathlib import Path

import pytest
from kafka.errors import GroupIdNotFoundError

from app.broker.groups import CommittedOffset, Groups


def commit(groups: Groups, offset: int, topic: str = "t", metadata: str = "") -> None:
    groups.commit("g", topic, 0, CommittedOffset(offset, -1, metadata))


def test_the_last_commit_counts_after_a_restart_too(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    groups = Groups(path)
    commit(groups, 5)
    commit(groups, 8, metadata="größer\n")
    for known in (groups, Groups(path)):
        assert known.committed("g") == {("t", 0): (8, -1, "größer\n")}


def test_a_torn_last_line_is_ignored_and_the_next_commit_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    commit(Groups(path), 5)
    path.write_text(path.read_text() + '["g", "t", 0, 9')
    groups = Groups(path)
    assert groups.committed("g") == {("t", 0): (5, -1, "")}
    commit(groups, 6)
    assert Groups(path).committed("g") == {("t", 0): (6, -1, "")}


def test_the_file_is_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.broker.journal.LINES_UNTIL_COMPACTED", 10)
    path = tmp_path / "groups.jsonl"
    groups = Groups(path)
    for offset in range(25):
        commit(groups, offset)
    assert len(path.read_text().splitlines()) == 1 + 5
    assert Groups(path).committed("g") == {("t", 0): (24, -1, "")}


def test_deleted_groups_and_topics_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    groups = Groups(path)
    commit(groups, 5, "t")
    commit(groups, 6, "u")
    groups.forget_topic("t")
    assert Groups(path).committed("g") == {("u", 0): (6, -1, "")}
    groups.delete("g")
    assert Groups(path).names == []
    with pytest.raises(GroupIdNotFoundError):
        groups.delete("g")
