class State:
    skipped = False
    interrupted = False
    processing_has_refined_job_count = False
    job_no = 0
    job_count = -1
    sampling_step = 0
    sampling_steps = 0
    current_image_sampling_step = 0
    textinfo = None

    def nextjob(self):
        self.job_no += 1
        self.sampling_step = 0
        self.current_image_sampling_step = 0
