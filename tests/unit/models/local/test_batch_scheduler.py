import threading

from stillroom.models.local.batch_scheduler import BatchScheduler


def test_what_cannot_be_told_fails_its_stream_and_no_other():
    class Told:
        error, reason = None, ""

        def __init__(self, text):
            self.text = text

        def settled(self):
            if not self.text:
                raise IndexError("piece id is out of range")
            return self.text

    def draw(drawings):
        yield
        yield

    batching = BatchScheduler(draw, rows=2, batches=1)
    done = {}

    def ask(at, text):
        try:
            done[at] = list(batching.stream(Told(text), 32))
        except IndexError as error:
            done[at] = error

    for turn in range(2):  # the second turn asks after a failure
        threads = [
            threading.Thread(target=ask, args=((turn, at), text), daemon=True)
            for at, text in enumerate(["corn", ""])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert done[turn, 0] == ["corn"]
        assert isinstance(done[turn, 1], IndexError)
