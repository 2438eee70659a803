from teengined.service.metrics.histogram import Histogram


def test_value_counts_in_the_first_bucket_that_is_not_below_it():
    histogram = Histogram((1.0, 2.0))

    for value in (0.0, 1.0, 1.5, 2.0, 2.5, 9.0):
        histogram.observe(value)

    assert histogram.distribution.counts == (2, 2, 2)
    assert histogram.distribution.total == 16.0
