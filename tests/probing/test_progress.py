from heatproof.probing.progress import Meter, bar


def test_a_bar_shows_on_standard_error_only_where_asked(capsys):
    with bar("counting", 2, show=True) as done:
        done(1)
        done(2)
    shown = capsys.readouterr()
    assert "counting" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""
    with bar("quiet", 2, show=False) as done:
        done(1)
    assert capsys.readouterr() == ("", "")


def test_a_meter_adds_up_the_parts():
    seen = []
    meter = Meter(seen.append)
    for units in (4, 2):
        with meter.covering(units):
            meter(0.5)
    assert seen == [2, 4, 5, 6]
