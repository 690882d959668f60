from heatproof.probing.progress import bar, track


def test_a_bar_shows_on_standard_error_only_where_asked(capsys):
    assert list(track([3, 1], "counting", show=True)) == [3, 1]
    shown = capsys.readouterr()
    assert "counting" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""
    assert list(track([3, 1], "counting", show=False)) == [3, 1]
    with bar("quiet", 2, show=False) as done:
        done(1)
    assert capsys.readouterr() == ("", "")
