class TotalTQDM:
    total = 0
    done = 0

    def update(self):
        self.done += 1

    def updateTotal(self, new_total):
        self.total = new_total
