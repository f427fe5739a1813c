async def run_in_threadpool(function, *args):
    return function(*args)
