"""A desktop program: type, press the button, and the model goes on while the window stays alive. Needs Tk.

python examples/desktop.py bundles/demo
"""

import queue
import sys
import threading
import tkinter as tk
from tkinter.scrolledtext import ScrolledText

import kiara_runtime

POLL = 30  # milliseconds between looks at what the model has written


class Window:
    """Tk belongs to one thread, so another one generates and hands its text over in a queue."""

    def __init__(self, root: tk.Tk, model: kiara_runtime.Model) -> None:
        self.root, self.model = root, model
        self.stream: kiara_runtime.Stream | None = None
        self.written: queue.Queue[str | None] = queue.Queue()
        root.title("Kiara")
        self.text = ScrolledText(root, wrap="word", width=80, height=24, font="TkFixedFont")
        self.text.pack(fill="both", expand=True, padx=12, pady=(12, 6))
        self.button = tk.Button(root, text="Continue", command=self.toggle)
        self.button.pack(anchor="e", padx=12, pady=(0, 12))
        root.protocol("WM_DELETE_WINDOW", self.close)

    def toggle(self) -> None:
        if self.stream is not None:
            self.stream.close()  # ends at the next token
            return
        self.stream = self.model.stream(self.text.get("1.0", "end-1c"), max_tokens=100, temperature=0.8)
        self.button["text"] = "Stop"
        threading.Thread(target=self.generate, args=(self.stream,), daemon=True).start()
        self.root.after(POLL, self.show)

    def generate(self, stream: kiara_runtime.Stream) -> None:
        try:
            for piece in stream:
                self.written.put(piece.text)
        finally:
            self.written.put(None)

    def show(self) -> None:
        while not self.written.empty():
            text = self.written.get()
            if text is None:
                self.stream, self.button["text"] = None, "Continue"
                return
            self.text.insert("end", text)
            self.text.see("end")
        self.root.after(POLL, self.show)

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.root.destroy()


if __name__ == "__main__":
    main_window = tk.Tk()
    Window(main_window, kiara_runtime.load(sys.argv[1]))
    main_window.mainloop()
