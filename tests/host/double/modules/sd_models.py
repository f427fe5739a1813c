class SdModelData:
    sd_model = None


model_data = SdModelData()
